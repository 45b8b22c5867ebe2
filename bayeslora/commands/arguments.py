"""Options that a command takes for itself, out of those it hands on to ``bayeslora test``."""

from __future__ import annotations

import re
import secrets
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import yaml

from bayeslora.configs.yaml_once import OnceLoader
from bayeslora.errors import UsageError, require

CONFIG = "--config"
_SHORT = {"-c": CONFIG}
_SEED = "--seed_everything"
_LARGEST_SEED = 2**32 - 1  # numpy's


def take_options(args: Sequence[str], names: Collection[str]) -> tuple[dict[str, list[str]], list[str]]:
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


def read_files(files: Sequence[str]) -> list[Any]:
    """What configuration files say, read before anything else so that what is wrong with them is said first.

    Args:
        files: Configuration files; one that does not exist is left to the parser.

    Raises:
        UsageError: one that is no text, no YAML, or says one thing twice.
    """
    found: list[Any] = []
    for file in files:
        if not Path(file).is_file():
            continue
        try:
            with Path(file).open(encoding="utf-8") as stream:
                found.append(yaml.load(stream, OnceLoader))
        except UnicodeDecodeError:
            raise UsageError(f"{file} is not in UTF-8; save it as UTF-8 text") from None
        except yaml.YAMLError as error:
            raise UsageError(f"{file} is no valid YAML: {' '.join(str(error).split())}") from None
    return found


def configurations_first(args: Sequence[str]) -> list[str]:
    """The same arguments with every configuration file in front, so that options beat files wherever they stand.

    Args:
        args: A subcommand and its arguments.

    Raises:
        UsageError: a file that cannot be read as YAML.
    """
    own, others = take_options(args[1:], (CONFIG,))
    return [args[0], *configs(own[CONFIG]), *_drawn_seed(others, read_files(own[CONFIG]))]


def _drawn_seed(args: list[str], files: Sequence[Any]) -> list[str]:
    """The same arguments with a seed in place of ``seed_everything: true``, which asks Lightning for any."""
    seeds, others = take_options(args, (_SEED,))
    in_files = [file[_SEED[2:]] for file in files if isinstance(file, dict) and _SEED[2:] in file]
    given = seeds[_SEED] or in_files[-1:]
    seed = str(given[-1] if given else None)
    if re.fullmatch(r"[+-]?\d+", seed):
        require(_SEED[2:], seed, 0 <= int(seed) <= _LARGEST_SEED, f"a whole number from 0 to {_LARGEST_SEED}, or true")
    if seed.lower() != "true":
        return args
    return [*others, f"{_SEED}={secrets.randbelow(2**31)}"]


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
