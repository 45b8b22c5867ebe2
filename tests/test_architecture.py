"""The layout and the order of imports that ``docs/architecture.md`` states are those of the tree; tests stand alone."""

import ast
from pathlib import Path

import pytest

from tools.layout import PAGE, layout, listed, rooms

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "bayeslora"


def _module(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {_module(path): path for path in PACKAGE.rglob("*.py")}


def _type_checking_only(tree: ast.Module) -> set[ast.AST]:
    guarded = [n for n in ast.walk(tree) if isinstance(n, ast.If) and ast.unparse(n.test).endswith("TYPE_CHECKING")]
    return {inner for node in guarded for inner in ast.walk(node)}


def _imported(path: Path) -> set[str]:
    """Modules of the package that a file imports, at its top or inside a function."""
    tree = ast.parse(path.read_text())
    skipped, found = _type_checking_only(tree), set()
    for node in ast.walk(tree):
        if node in skipped:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
    inside = {name for name in found if name in MODULES and name != "bayeslora"}
    # A package whose submodule is named is not imported for its own sake.
    return {name for name in inside if not any(other.startswith(name + ".") for other in inside)}


IMPORTS = {name: _imported(path) for name, path in MODULES.items()}


ROOMS = rooms(PAGE.read_text())


def test_the_page_lists_every_file_and_what_it_says_of_itself() -> None:
    assert listed(PAGE.read_text()) == layout(ROOMS), "run: python tools/layout.py --write"


def test_few_files_stand_at_the_top() -> None:
    assert len(list(PACKAGE.glob("*.py"))) <= 8


def test_every_room_has_its_place_in_the_order_of_imports() -> None:
    found = {path.name for path in PACKAGE.iterdir() if path.is_dir() and list(path.rglob("*.py"))}
    assert set(ROOMS) == found


@pytest.mark.parametrize("name", sorted(MODULES))
def test_imports_go_one_way(name: str) -> None:
    """A room imports itself, the files at the top, and rooms to the left of it; the front door nothing at its top."""

    def place(module: str) -> int:
        room = module.split(".")[1] if "." in module else ""
        return ROOMS.index(room) if room in ROOMS else -1

    if name in ("bayeslora", "bayeslora.cli"):
        return
    wrong = [other for other in IMPORTS[name] if place(other) > place(name) or other == "bayeslora.cli"]
    assert not wrong, f"{name} imports {wrong}; the order is {ROOMS}"


def test_no_circle_of_imports() -> None:
    """No file reaches itself, whether it imports at its top or inside a function."""
    state: dict[str, int] = {}

    def visit(name: str, path: tuple[str, ...]) -> None:
        if state.get(name) == 2:
            return
        assert state.get(name) != 1, f"a circle: {' -> '.join([*path[path.index(name) :], name])}"
        state[name] = 1
        for other in sorted(IMPORTS[name]):
            visit(other, (*path, name))
        state[name] = 2

    for name in sorted(IMPORTS):
        visit(name, ())


TESTS = sorted((ROOT / "tests").rglob("*.py"))


@pytest.mark.parametrize("path", TESTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_tests_do_not_import_one_another(path: Path) -> None:
    """What several of them need is in ``tests/helpers`` (or a fixture), so that each may change or go alone."""
    nodes = list(ast.walk(ast.parse(path.read_text())))
    named = {
        f"{node.module}.{alias.name}" for node in nodes if isinstance(node, ast.ImportFrom) for alias in node.names
    }
    named |= {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    own = {name for name in named if name.startswith("tests.")}
    wrong = sorted(name for name in own if any(part.startswith(("test_", "conftest")) for part in name.split(".")))
    assert not wrong, f"{path.relative_to(ROOT)} imports {wrong}: move what it needs to tests/helpers"


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_files_and_functions_fit_on_a_screen(path: Path) -> None:
    """At most 400 lines a file and 55 a function, docstrings included."""
    text = path.read_text()
    assert len(text.splitlines()) <= 400
    functions = [n for n in ast.walk(ast.parse(text)) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
    assert not [n.name for n in functions if (n.end_lineno or 0) - n.lineno >= 55]
