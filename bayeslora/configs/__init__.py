"""The configurations that come with the package, found by their names: ``quickstart``, ``base/mistral_7b``."""

from __future__ import annotations

import re
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path

from bayeslora.errors import UsageError

CONFIGS = Path(__file__).parent
_OPTIONS = ("-c", "--config")
_PREFIX = "configs/"  # as the folder is called where `bayeslora configs` copies it
_NAME = re.compile(r"[\w./+~-]+")  # what can be a name or a path; anything else is YAML in the argument itself


def names() -> list[str]:
    """The names of all configurations that are shipped, whole ones first.

    Example:
        >>> "quickstart" in names() and "method/swag" in names()
        True
    """
    found = [file.relative_to(CONFIGS).with_suffix("").as_posix() for file in CONFIGS.rglob("*.yaml")]
    return sorted(found, key=lambda name: (name.count("/") > 0, name))


def find(name: str) -> Path | None:
    """The shipped file of a name; None where there is none.

    Args:
        name: ``quickstart``, ``base/mistral_7b``; ``configs/`` before it and ``.yaml`` behind it may be there.
    """
    bare = name.removeprefix("./").removeprefix(_PREFIX).removesuffix(".yaml")
    return CONFIGS / f"{bare}.yaml" if bare in names() else None


def to_file(given: str) -> str:
    """The file that ``-c`` means: a file of that path, or else the shipped one of that name.

    Raises:
        UsageError: there is neither.
    """
    if not _NAME.fullmatch(given) or Path(given).expanduser().exists():
        return given
    if (shipped := find(given)) is not None:
        return str(shipped)
    near = get_close_matches(given.removeprefix(_PREFIX).removesuffix(".yaml"), names(), n=1)
    meant = f"; did you mean {near[0]}?" if near else ""
    raise UsageError(f"{given} is no file and no shipped configuration (`bayeslora configs` lists them){meant}")


def with_files(args: Sequence[str]) -> list[str]:
    """The same arguments with the file in the place of every shipped configuration's name after ``-c``.

    Raises:
        UsageError: something after ``-c`` is neither a file nor such a name.
    """
    found: list[str] = []
    for place, arg in enumerate(args):
        option, joined, value = arg.partition("=")
        if place and args[place - 1] in _OPTIONS:
            found.append(to_file(arg))
        else:
            found.append(f"{option}={to_file(value)}" if joined and option in _OPTIONS else arg)
    return found
