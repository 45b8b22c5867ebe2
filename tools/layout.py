"""Writes the layout section of ``docs/architecture.md`` from the tree and the first sentence of every file.

python tools/layout.py          # prints it
python tools/layout.py --write  # puts it into the page
"""

import argparse
import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "architecture.md"
_BLOCK = re.compile(r"(?<=^## Layout\n\n)(?: {4}.*\n|\n(?= {4}))+", re.MULTILINE)
_ORDER = re.compile(r"^Imports go one way: (.*?)\.\n", re.DOTALL | re.MULTILINE)


def rooms(page: str) -> list[str]:
    """The package's folders in the order in which they may import, as the page states it."""
    order = _ORDER.search(page)
    if order is None:
        raise SystemExit(f"{PAGE} has no sentence that begins with 'Imports go one way:'")
    return re.findall(r"`(\w+)`", order[1])


def listed(page: str) -> str:
    """The layout block that stands in the page."""
    block = _BLOCK.search(page)
    if block is None:
        raise SystemExit(f"{PAGE} has no indented block below '## Layout'")
    return block[0]


def layout(order: list[str]) -> str:
    """Every file of the package, room by room, with the first sentence of its docstring."""
    lines = ["    bayeslora/"]
    _walk(ROOT / "bayeslora", 1, order, lines)
    return "\n".join(lines) + "\n"


def _walk(folder: Path, depth: int, order: list[str], lines: list[str]) -> None:
    files = sorted(path for path in folder.glob("*.py") if path.name != "__init__.py")
    lines.extend(_line(path.name, path, depth) for path in files)
    inner = [path for path in folder.iterdir() if (path / "__init__.py").is_file()]
    for path in sorted(inner, key=lambda p: (order.index(p.name) if p.name in order else -1, p.name)):
        lines.append(_line(path.name + "/", path / "__init__.py", depth))
        _walk(path, depth + 1, order, lines)


def _line(name: str, path: Path, depth: int) -> str:
    text = ast.get_docstring(ast.parse(path.read_text())) or ""
    first = " ".join(text.split("\n\n")[0].split()).rstrip(".")
    return f"    {'  ' * depth + name:<30} {first}"


def main() -> None:
    """Print the layout, or write it into the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="put the layout into the page")
    write = parser.parse_args().write
    page = PAGE.read_text()
    block = layout(rooms(page))
    if write:
        PAGE.write_text(page.replace(listed(page), block))
    else:
        print(block, end="")


if __name__ == "__main__":
    main()
