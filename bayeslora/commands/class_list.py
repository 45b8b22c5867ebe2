"""The classes that ``--model`` and ``--data`` take, where their help is asked for without naming one."""

from __future__ import annotations

import re
from collections.abc import Sequence
from inspect import getdoc

from lightning import LightningDataModule, LightningModule

import bayeslora.datamodules
import bayeslora.lightning_modules

_HELP = {"--model.help": bayeslora.lightning_modules, "--data.help": bayeslora.datamodules}
_KINDS = (LightningModule, LightningDataModule)  # not what these are made of
_WIDTH = 28  # characters of a name


def classes_asked_for(args: Sequence[str]) -> str | None:
    """The list of classes with what each is, in a line; None where no list is asked for.

    Args:
        args: The command's arguments; ``--model.help`` or ``--data.help`` that no class follows asks for a list.
    """
    for place, arg in enumerate(args):
        following = args[place + 1] if place + 1 < len(args) else "-"
        if arg in _HELP and following.startswith("-"):
            return _listed(arg)
    return None


def _listed(option: str) -> str:
    room, kind = _HELP[option], option.removeprefix("--").removesuffix(".help")
    classes = {name: getattr(room, name) for name in sorted(room.__all__)}
    said = {name: _first_line(cls) for name, cls in classes.items() if issubclass(cls, _KINDS)}
    lines = [f"  {name:{_WIDTH}}{line}" for name, line in said.items()]
    first = f"classes that --{kind} takes (or the import path of your own):"
    return "\n".join([first, *lines, f"{option} {next(iter(said))} lists the options of one"])


def _first_line(cls: type) -> str:
    """What a class says of itself, without the roles of the documentation."""
    return re.sub(r":\w+:`~?([^`]+)`", r"\1", (getdoc(cls) or "").partition("\n")[0])
