"""The licences of all that an installation brings, as a page: ``python tools/licences.py --write``."""

from __future__ import annotations

import sys
import tomllib
from importlib.metadata import PackageNotFoundError, metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "project" / "licences.md"
OWN = "bayeslora"
_HEAD = """\
# Licences

What is installed beside `bayeslora`, in the versions of `constraints.txt`, under the licences that the packages
themselves state. "always" is a dependency of the package, others come with an extra (`pip install 'bayeslora[serve]'`),
and those without an entry are brought by another one. `bayeslora` itself is under the Apache License 2.0.

`ivon-opt` is under the GPL, version 3 or later. It is never installed unless you ask for the extra `ivon`; whoever
passes on a work that contains it has to keep to that licence. On Linux, `torch` as the package index has it brings
NVIDIA's CUDA libraries, which are under licences of NVIDIA's own and are not pinned here.

`python tools/licences.py --write` makes this page.

| package | version | licence | needed |
|---|---|---|---|
"""
_CLASSIFIER = "License :: OSI Approved :: "


def pins(file: Path = ROOT / "constraints.txt") -> dict[str, str]:
    """The pinned version of every package, by its normal name."""
    lines = (line.partition("#")[0].strip() for line in file.read_text().splitlines())
    pairs = (line.partition("==") for line in lines if line)
    return {canonicalize_name(name): version for name, _, version in pairs}


def direct() -> dict[str, list[tuple[str, Requirement]]]:
    """What ``pyproject.toml`` asks for itself: normal name to where (``always`` or an extra) and the requirement."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    found: dict[str, list[tuple[str, Requirement]]] = {}
    for where, requirements in {"always": project["dependencies"], **project["optional-dependencies"]}.items():
        for requirement in map(Requirement, requirements):
            if requirement.name != OWN:
                found.setdefault(canonicalize_name(requirement.name), []).append((where, requirement))
    return found


def licence(name: str) -> str | None:
    """What an installed package says of its licence, in one line; None where it is not installed."""
    try:
        about = metadata(name)
    except PackageNotFoundError:
        return None
    classifiers = [c.removeprefix(_CLASSIFIER) for c in about.get_all("Classifier") or [] if c.startswith(_CLASSIFIER)]
    text = (about.get("License") or "").strip().splitlines()
    short = text[0] if text and len(text[0]) <= 60 else ""
    return about.get("License-Expression") or ", ".join(classifiers) or short or "see its own files"


def row(name: str, version: str, asked: dict[str, list[tuple[str, Requirement]]]) -> str | None:
    """The page's line about a package; None where it is not installed.

    Args:
        name: The package's normal name.
        version: Its pinned version.
        asked: See :func:`direct`.
    """
    found = licence(name)
    needed = ", ".join(where for where, _ in asked.get(name, []))
    return None if found is None else f"| {name} | {version} | {found.replace('|', '/')} | {needed} |"


def page() -> str:
    """The whole page, from what is installed here.

    Raises:
        SystemExit: a package that is pinned is not installed, so that nobody knows its licence.
    """
    asked = direct()
    rows = {name: row(name, version, asked) for name, version in sorted(pins().items())}
    if missing := [name for name, line in rows.items() if line is None]:
        raise SystemExit(f"not installed: {', '.join(missing)}; install what constraints.txt pins, then try again")
    return _HEAD + "\n".join(map(str, rows.values())) + "\n"


if __name__ == "__main__":
    if "--write" in sys.argv:
        PAGE.write_text(page())
    else:
        print(page(), end="")
