"""Which checkpoint a command takes, and the configuration that a checkpoint brings with it."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import yaml

from bayeslora.errors import UsageError
from bayeslora.posteriors.members.store import DONE, FOLDER, MemberStore


def resolve(checkpoint: str, root: Path) -> str:
    """The file of ``last``, ``best`` or a path, checked to be whole."""
    path = root / "checkpoints" / f"{checkpoint}.ckpt" if checkpoint in ("last", "best") else Path(checkpoint)
    if not path.is_file():
        raise UsageError(
            f"there is no checkpoint {path}; run `bayeslora fit` into {root} first, or give --ckpt_path FILE, "
            "--ckpt_path base (the untrained base) or --model.backbone.adapter DIR (a peft adapter)"
        )
    _load(path)
    return str(path)


def members_beyond_checkpoint(root: Path) -> tuple[int, ...]:
    """The members in a run folder's store, where its last checkpoint does not hold them all (with more beside them)."""
    done, last = MemberStore(root / FOLDER).members(DONE), root / "checkpoints" / "last.ckpt"
    if not done or not last.exists():
        return done
    held = _load(last).get("bayeslora", {}).get("members", {}).get("ids", [])
    return () if set(done) <= set(held) else done


def _load(path: Path) -> dict[str, Any]:
    try:
        return torch.load(path, weights_only=True, map_location="cpu", mmap=True)
    except Exception as error:  # torch raises half a dozen types here, all of which mean the same to a user
        reason = str(error).splitlines()[0]
        raise UsageError(f"{path} is damaged or no checkpoint of this package: {reason}") from error


@contextmanager
def checkpoint_config(args: list[str]) -> Iterator[list[str]]:
    """Put a checkpoint's own configuration in front of the others, where everything given later beats it.

    Lightning would let the checkpoint beat the command line. Without any ``-c``, all of the run's configuration is
    taken (``fit-config.yaml``); with one, the checkpoint's model alone.
    """
    path = _option(args, "--ckpt_path")
    if path is None or not Path(path).is_file():
        yield args
        return
    saved = Path(path).resolve().parent.parent / "fit-config.yaml"
    given = any(arg in ("-c", "--config") or arg.startswith("--config=") for arg in args)
    if not given and saved.exists():
        config = yaml.safe_load(saved.read_text())
        config = {key: config[key] for key in ("seed_everything", "trainer", "model", "data")}
    else:
        config = _model_config(_load(Path(path)).get("hyper_parameters", {}))
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        yaml.safe_dump(config, file)
        file.flush()
        yield [args[0], "-c", file.name, *args[1:]]


def _model_config(hparams: dict[str, Any]) -> dict[str, Any]:
    class_path = hparams.get("_class_path")
    if class_path is None:
        return {}
    linked = {"seed", "_class_path", "_instantiator"}
    return {"model": {"class_path": class_path, "init_args": {k: v for k, v in hparams.items() if k not in linked}}}


def _option(args: list[str], name: str) -> str | None:
    for index, arg in enumerate(args):
        if arg == name and index + 1 < len(args):
            return args[index + 1]
        if arg.startswith(f"{name}="):
            return arg.partition("=")[2]
    return None
