"""Which checkpoint a command takes, which run it belongs to, and the configuration that it brings with it."""

from __future__ import annotations

import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import yaml

from bayeslora.commands.saved_config import read_sealed
from bayeslora.commands.trust import refuse_unknown_classes
from bayeslora.errors import UsageError
from bayeslora.posteriors.members.store import DAMAGED, DONE, FOLDER, MemberStore

LAST = "checkpoints/last.ckpt"  # in a run folder
NAMED = ("last", "best")  # checkpoints of the run folder itself
_TAKEN = ("seed_everything", "trainer", "model", "data")  # of a run's configuration, when a checkpoint brings it


def resolve(checkpoint: str, root: Path) -> str:
    """The file of ``last``, ``best`` or a path, checked to be whole.

    Args:
        checkpoint: ``last``, ``best``, or the path of a file.
        root: The run folder.
    """
    path = root / "checkpoints" / f"{checkpoint}.ckpt" if checkpoint in NAMED else Path(checkpoint).expanduser()
    if not path.is_file():
        raise UsageError(
            f"there is no checkpoint {path}; run `bayeslora fit` into {root} first, or give --ckpt_path FILE, "
            "--ckpt_path base (the untrained base) or --model.backbone.adapter DIR (a peft adapter)"
        )
    load(path)
    return str(path)


def members_beyond_checkpoint(root: Path) -> tuple[int, ...]:
    """The members in a run folder's store, where its last checkpoint does not hold them all (with more beside them).

    Damaged ones count: what loads them says what is the matter.
    """
    store, last = MemberStore(root / FOLDER), root / "checkpoints" / "last.ckpt"
    there = tuple(sorted((*store.members(DONE), *store.members(DAMAGED))))
    if not there or not last.exists():
        return there
    held = load(last).get("bayeslora", {}).get("members", {}).get("ids", [])
    return () if set(there) <= set(held) else there


def load(path: Path) -> dict[str, Any]:
    """What a checkpoint file holds; tensors are read when they are looked at.

    Raises:
        UsageError: it is damaged, or holds what is no data.
    """
    try:
        if not (zipfile.is_zipfile(path) and zipfile.ZipFile(path).testzip() is None):
            raise ValueError("its parts do not have the checksums they were written with")
        return torch.load(path, weights_only=True, map_location="cpu", mmap=True)
    except Exception as error:  # torch raises half a dozen types here, all of which mean the same to a user
        reason = str(error).splitlines()[0]
        raise UsageError(f"{path} is damaged or no checkpoint of this package: {reason}") from error


def run_of(checkpoint: str | Path) -> Path | None:
    """The run folder that a checkpoint lies in, wherever it has been moved to; None for a file from elsewhere."""
    folder = Path(checkpoint).expanduser().resolve().parent
    return folder.parent if folder.name == "checkpoints" else None


def resumes(checkpoint: str | None, root: Path) -> bool:
    """Whether a fit from ``checkpoint`` continues the run in ``root``: only a checkpoint of that folder does.

    Args:
        checkpoint: ``last``, ``best``, or the path of a file.
        root: The run folder.
    """
    if checkpoint is None:
        return False
    return checkpoint in NAMED or run_of(checkpoint) == root.resolve()


@contextmanager
def checkpoint_config(args: list[str], trusted: bool = False) -> Iterator[list[str]]:
    """Put a checkpoint's own configuration in front of the others, where everything given later beats it.

    Lightning would let the checkpoint beat the command line. Without any ``-c``, all of the run's configuration is
    taken (``fit-config.yaml``), with the folder that the checkpoint lies in now as the run folder; with one, the
    checkpoint's model alone.

    Args:
        args: A subcommand and its arguments.
        trusted: Whether classes that are not this package's may be named by the file.

    Raises:
        UsageError: the configuration names classes that nobody has asked for.
    """
    path = _option(args, "--ckpt_path")
    if path is None or not Path(path).expanduser().is_file():
        yield args
        return
    root = run_of(path)
    given = any(arg in ("-c", "--config") or arg.startswith("--config=") for arg in args)
    if not given and root is not None and (saved := root / "fit-config.yaml").exists():
        config = {key: value for key, value in read_sealed(saved).items() if key in _TAKEN}
        config.setdefault("trainer", {})["default_root_dir"] = str(root)
    else:
        saved = Path(path)
        config = _model_config(load(saved.expanduser()).get("hyper_parameters", {}))
    if not trusted:
        refuse_unknown_classes(config, saved, args)
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
