"""The command ``bayeslora configs``: lists the configurations that are shipped, and copies them."""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Sequence
from pathlib import Path

from bayeslora.configs import CONFIGS, find, names
from bayeslora.errors import UsageError


def main(args: Sequence[str]) -> int:
    """Run ``bayeslora configs``; returns the exit status."""
    given = _parser().parse_args(args)
    if not given.names:
        if given.to is not None:
            raise UsageError("--to copies configurations; name at least one, as `bayeslora configs` lists them")
        width = max(map(len, names()))
        print("\n".join(f"{name:<{width}}  {_first_sentence(CONFIGS / f'{name}.yaml')}" for name in names()))
        return 0
    for copy in _copied(given.names, given.to or Path("configs")):
        print(f"written: {copy}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="bayeslora configs",
        description="List the configurations that -c takes by name, or copy some of them to change them.",
        epilog="A file wins over a name: after `bayeslora configs method/swag`, -c configs/method/swag.yaml is the "
        "copy and -c method/swag still the original.",
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="what to copy; without a name, all are listed")
    parser.add_argument("--to", type=Path, metavar="FOLDER", help="where to copy it (configs)")
    return parser


def _copied(wanted: Sequence[str], folder: Path) -> list[Path]:
    """Copy configurations below a folder, all or none of them; where they are now."""
    sources = {name: find(name) for name in wanted}
    for name, source in sources.items():
        if source is None:
            raise UsageError(f"no configuration is called {name}; `bayeslora configs` lists all names")
    pairs = [(source, folder / source.relative_to(CONFIGS)) for source in sources.values() if source is not None]
    for _, copy in pairs:
        if copy.exists():
            raise UsageError(f"{copy} is there already and stays as it is; give another folder with --to")
    for source, copy in pairs:
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, copy)
    return [copy for _, copy in pairs]


def _first_sentence(file: Path) -> str:
    """What the comment at the head of a configuration says first, on one line of a list."""
    head = []
    for line in file.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#") or line.startswith("#  "):
            break
        head.append(line.lstrip("# "))
    text = " ".join(head)
    ends = [place for mark in (". ", ": ") if (place := text.find(mark)) > 20]
    return text[: min(ends)] if ends else text.rstrip(".:;")
