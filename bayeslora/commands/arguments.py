"""Options that a command takes for itself, out of those it hands on to ``bayeslora test``."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

CONFIG = "--config"
_SHORT = {"-c": CONFIG}


def taken(args: Sequence[str], names: Collection[str]) -> tuple[dict[str, list[str]], list[str]]:
    """The values of some options, in their order, and all other arguments.

    Args:
        args: As on the command line: ``--name value`` or ``--name=value``; ``-c`` is ``--config``.
        names: Of the options.
    """
    values: dict[str, list[str]] = {name: [] for name in names}
    others: list[str] = []
    rest = iter(args)
    for arg in rest:
        name, given, value = arg.partition("=")
        name = _SHORT.get(name, name)
        if name in values:
            values[name].append(value if given else next(rest, ""))
        else:
            others.append(arg)
    return values, others


def callback(class_path: str, files: Sequence[str]) -> list[str]:
    """The option that adds a callback, unless one of these configuration files has it."""
    named = any(class_path in Path(file).read_text() for file in files if Path(file).is_file())
    return [] if named else [f"--trainer.callbacks+={class_path}"]


def configs(files: Sequence[str]) -> list[str]:
    """The options that name these configuration files."""
    return [f"{CONFIG}={file}" for file in files]
