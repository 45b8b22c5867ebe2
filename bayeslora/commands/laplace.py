"""``bayeslora laplace``: Laplace's approximation to a finished run, or to a peft adapter that was trained elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from bayeslora.commands.arguments import CONFIG, callback, configs, read_files, take_options, the_adapter
from bayeslora.errors import UsageError

HELP = """\
usage: bayeslora laplace -c CONFIG [-c CONFIG ...] [--ckpt_path CKPT | --adapter DIR] [OPTIONS]

Fit Laplace's Gaussian around the weights of a finished run, without training, save it to posterior/ and test it.

  -c CONFIG            the run's configuration; a method such as method/laplace may follow
  --ckpt_path CKPT     last (the default), best, or a file; `all` for every checkpoint of the run, one after another:
                       their results are in laplace_steps/<checkpoint>/ of the run folder, for `bayeslora compare`
  --adapter DIR        a peft adapter from elsewhere instead

Every other option is one of `bayeslora test`; those of Laplace itself are --trainer.callbacks.precision and so on:
  bayeslora laplace -c quickstart --trainer.default_root_dir runs/quickstart --overwrite
  bayeslora laplace -c quickstart --adapter DIR --trainer.default_root_dir runs/theirs \\
    --trainer.callbacks.precision validation
"""
_CLASS = "bayeslora.callbacks.Laplace"
_ROOT = "--trainer.default_root_dir"


def main(args: list[str]) -> int:
    """Run the command; returns the exit status.

    Args:
        args: What follows ``laplace``.

    Raises:
        UsageError: no configuration, both a checkpoint and an adapter, or whatever ``bayeslora test`` refuses.
    """
    if not args or args[0] in ("-h", "--help"):
        print(HELP, end="")
        return 0
    from bayeslora.commands.lightning import run

    for arguments in as_tests(args):
        if status := run(arguments):
            return status
    return 0


def as_tests(args: list[str]) -> list[list[str]]:
    """The arguments of the ``test`` commands that this one stands for: one, or one for each checkpoint.

    Raises:
        UsageError: no configuration, both a checkpoint and an adapter, or ``all`` of a run without checkpoints.
    """
    own, others = take_options(args, (CONFIG, "--adapter", "--ckpt_path"))
    files, adapters, checkpoints = own[CONFIG], own["--adapter"], own["--ckpt_path"]
    if not files:
        raise UsageError("bayeslora laplace needs -c CONFIG, the configuration the run was trained with")
    if adapters and checkpoints:
        raise UsageError(f"given are --adapter {adapters[-1]} and --ckpt_path {checkpoints[-1]}; allowed: one of them")
    head = ["test", *configs(files), *callback(_CLASS, files)]
    if adapters:
        return [[*head, *the_adapter(adapters[-1]), *others]]
    if checkpoints[-1:] != ["all"]:
        return [[*head, *[f"--ckpt_path={checkpoint}" for checkpoint in checkpoints[-1:]], *others]]
    root = _run_folder(files, others)
    saved = sorted((root / "checkpoints").glob("*.ckpt"), key=lambda file: file.stat().st_mtime)
    if not saved:
        raise UsageError(f"{root} has no checkpoints; give {_ROOT}, the folder of a finished run")
    steps = root / "laplace_steps"
    return [[*head, *others, f"--ckpt_path={file}", f"{_ROOT}={steps / file.stem}"] for file in saved]


def _run_folder(files: Sequence[str], options: Sequence[str]) -> Path:
    """The run folder as ``test`` takes it: what an option names, or else the last configuration that names one."""
    trainers = [config.get("trainer") for config in read_files(files) if isinstance(config, dict)]
    named = [trainer.get("default_root_dir") for trainer in trainers if isinstance(trainer, dict)]
    given = take_options(options, (_ROOT,))[0][_ROOT]
    return Path([name for name in ("runs/default", *named, *given) if name][-1]).expanduser()
