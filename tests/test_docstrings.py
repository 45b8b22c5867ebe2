"""Docstrings: every definition has one, public functions speak of their parameters, public names have examples."""

import ast
import doctest
import inspect
import pkgutil
import re
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import FunctionType
from typing import Any

import pytest

import bayeslora

MODULES = [module.name for module in pkgutil.walk_packages(bayeslora.__path__, "bayeslora.")]
NEEDS_A_RUN = {"Predictor"}  # tests/serving/test_examples.py makes one


def _functions(owner: Any, module: str, name: str = "") -> Iterator[tuple[str, FunctionType]]:
    """Public functions and methods that a module defines, but for methods that a base class has documented."""
    for key, value in vars(owner).items():
        value = getattr(value, "__func__", value)
        found = inspect.unwrap(value) if callable(value) else value
        if key.startswith("_") or getattr(found, "__module__", None) != module:
            continue
        if isinstance(found, FunctionType) and found.__name__ != "<lambda>":
            if not any(key in vars(base) for base in getattr(owner, "__mro__", ())[1:]):
                yield f"{name}{key}", found
        elif inspect.isclass(found):
            yield from _functions(found, module, f"{name}{key}.")


def undocumented(function: FunctionType) -> list[str]:
    """Parameters of a function with two or more that its docstring does not speak of under ``Args:``."""
    names = [name for name in inspect.signature(function).parameters if name not in ("self", "cls")]
    section = re.search(r"^Args:\n((?:    .*\n?|\n)*)", inspect.getdoc(function) or "", re.MULTILINE)
    said = set(re.findall(r"^    \**(\w+):", section[1], re.MULTILINE)) if section else set()
    return [name for name in names if name not in said] if len(names) >= 2 else []


def test_every_definition_with_a_public_name_has_a_docstring() -> None:
    """Classes, methods and functions of the package and of the scripts, also those inside another function."""
    kinds, root = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef, Path(bayeslora.__file__).parents[1]
    folders = ("bayeslora", "benchmarks", "tools", "docs/_ext")
    files = sorted(path for folder in folders for path in (root / folder).rglob("*.py"))
    nodes = ((path, node) for path in files for node in ast.walk(ast.parse(path.read_text())))
    defined = ((path, node) for path, node in nodes if isinstance(node, kinds) and not node.name.startswith("_"))
    missing = [f"{path.relative_to(root)}:{n.lineno} {n.name}" for path, n in defined if not ast.get_docstring(n)]
    assert not missing, f"without a docstring, or a leading underscore: {missing}"


@pytest.mark.parametrize("module", MODULES)
def test_every_parameter_is_spoken_of(module: str) -> None:
    found = {name: undocumented(function) for name, function in _functions(import_module(module), module)}
    missing = {name: parameters for name, parameters in found.items() if parameters}
    assert not missing, f"Args: is missing in {module} for {missing}"


@pytest.mark.parametrize("name", bayeslora.__all__)
def test_every_public_name_has_an_example_that_runs(name: str) -> None:
    found = doctest.DocTestFinder(recurse=False).find(getattr(bayeslora, name), name, globs={})
    examples = found[0].examples if found else []
    assert examples, f"{name} has no example in its docstring"
    if name not in NEEDS_A_RUN:
        assert doctest.DocTestRunner().run(found[0]).failed == 0
