"""Options of before under the names they have now, so that old commands and configurations keep working."""

from __future__ import annotations

import re
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

import yaml

from bayeslora.lightning_modules.optimisation import Optimisation

HOME = "optimisation"
MOVED = tuple(field.name for field in fields(Optimisation))  # once arguments of every module, now fields of one of them
GONE = "lease_seconds"  # of Ensemble: what it named has no end in time any more
_OPTION = re.compile(rf"--model\.(?:init_args\.)?({'|'.join(MOVED)})(=.*)?")


@contextmanager
def current_names(args: list[str]) -> Iterator[list[str]]:
    """Arguments in which options and configuration files say what they say by today's names.

    ``--model.learning_rate`` becomes ``--model.optimisation.learning_rate``, and the same holds within the ``model`` of
    a file that ``-c`` or ``--config`` names; a copy of such a file is read, the file itself stays as it is. What is
    given later beats what is given earlier, as everywhere. What no longer means anything is left out.

    Args:
        args: The command line's arguments.
    """
    with ExitStack() as copies:
        found: list[str] = []
        for arg in args:
            if match := _OPTION.fullmatch(arg):
                arg = f"--model.{HOME}.{match[1]}{match[2] or ''}"
            elif found and found[-1] in ("-c", "--config"):
                arg = _current(arg, copies)
            elif arg.startswith("--config="):
                arg = f"--config={_current(arg.partition('=')[2], copies)}"
            found.append(arg)
        yield found


def _current(file: str, copies: ExitStack) -> str:
    """A configuration file, or a copy of it with today's names where it has old ones."""
    try:
        config = yaml.safe_load(Path(file).read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return file  # the parser says what is wrong with it
    sections = [config, *config.values()] if isinstance(config, dict) else []
    moved = [name for section in sections for name in _move(section)]
    gone = [name for section in sections for name in _drop(section)]
    if not (moved or gone):
        return file
    if moved:
        warnings.warn(f"{file}: {', '.join(moved)} of the model are now in {HOME}", FutureWarning, stacklevel=2)
    if gone:
        warnings.warn(f"{file}: {', '.join(gone)} of Ensemble means nothing any more", FutureWarning, stacklevel=2)
    copy = copies.enter_context(tempfile.NamedTemporaryFile("w", suffix=".yaml"))  # noqa: SIM115  the stack closes it
    yaml.safe_dump(config, copy)
    copy.flush()
    return copy.name


def _move(section: Any) -> list[str]:
    """Put the model's old names in a section into their new place; the names that were found."""
    model = section.get("model") if isinstance(section, dict) else None
    options = model.get("init_args") if isinstance(model, dict) else None
    if not isinstance(options, dict) or not (names := [name for name in MOVED if name in options]):
        return []
    home: dict[str, Any] = options.get(HOME) or {}
    home.get("init_args", home).update({name: options.pop(name) for name in names})  # as jsonargparse may have saved it
    options[HOME] = home
    return names


def _drop(section: Any) -> list[str]:
    """Leave out of a section's callbacks what no longer means anything; the names that were found."""
    trainer = section.get("trainer") if isinstance(section, dict) else None
    callbacks = trainer.get("callbacks") if isinstance(trainer, dict) else None
    found = []
    for entry in callbacks if isinstance(callbacks, list) else []:
        options = entry.get("init_args") if isinstance(entry, dict) else None
        if isinstance(options, dict) and str(entry.get("class_path")).rpartition(".")[2] == "Ensemble":
            found += [GONE] if options.pop(GONE, None) is not None else []
    return found
