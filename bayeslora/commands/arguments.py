"""Options that a command takes for itself, out of those it hands on to ``bayeslora test``."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import yaml

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


def configurations_first(args: Sequence[str]) -> list[str]:
    """The same arguments with every configuration file in front, so that options beat files wherever they stand.

    Args:
        args: A subcommand and its arguments.
    """
    own, others = taken(args[1:], (CONFIG,))
    return [args[0], *configs(own[CONFIG]), *others]


def callback(class_path: str, files: Sequence[str]) -> list[str]:
    """The option that adds a callback, unless one of these configuration files has it.

    Args:
        class_path: As configurations name it, for example ``bayeslora.callbacks.Laplace``.
        files: Configuration files; one that cannot be read is left to the parser, which says why.
    """
    name = class_path.rpartition(".")[2]
    named = any(_is(name, entry) for file in files for entry in _callbacks(Path(file)))
    return [] if named else [f"--trainer.callbacks+={class_path}"]


def _callbacks(file: Path) -> list[Any]:
    """The entries of a configuration's ``trainer.callbacks``."""
    try:
        config = yaml.safe_load(file.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return []
    trainer = config.get("trainer") if isinstance(config, dict) else None
    lists = [trainer.get(key) or [] for key in ("callbacks", "callbacks+")] if isinstance(trainer, dict) else []
    return [entry for entries in lists for entry in (entries if isinstance(entries, list) else [entries])]


def _is(name: str, entry: Any) -> bool:
    """Whether an entry, a class path or a mapping with one, is this package's class of that name."""
    path = entry.get("class_path") if isinstance(entry, dict) else entry
    return isinstance(path, str) and path.rpartition(".")[2] == name and path.partition(".")[0] in (name, "bayeslora")


def configs(files: Sequence[str]) -> list[str]:
    """The options that name these configuration files."""
    return [f"{CONFIG}={file}" for file in files]


def the_adapter(folder: str) -> list[str]:
    """The options that test a peft adapter itself, also in a run folder that has a checkpoint."""
    return [f"--model.init_args.backbone.adapter={folder}", "--ckpt_path=adapter"]
