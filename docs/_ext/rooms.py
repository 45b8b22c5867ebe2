"""Pages of the reference: one for each package, with the public modules in it, written from the tree before a build.

What ``bayeslora.__all__`` names has a page of its own, under the name by which it is imported, and is left out here.
"""

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, get_type_hints

from sphinx.application import Sphinx

import bayeslora


def packages(root: Path) -> dict[str, list[str]]:
    """Names of packages, and of the public modules in each."""
    found: dict[str, list[str]] = {}
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root.parent).with_suffix("").parts
        if not any(part.startswith("_") for part in parts):
            found.setdefault(".".join(parts[:-1]), []).append(".".join(parts))
    return found


def page(package: str, modules: list[str]) -> str:
    """The page of a package, in reStructuredText, since docstrings are."""
    title = package
    lines = [title, "=" * len(title), "", f".. automodule:: {package}", ""]
    for module in modules:
        title = module.removeprefix("bayeslora.")
        lines += [title, "-" * len(title), "", f".. automodule:: {module}", "   :members:", ""]
    return "\n".join(lines)


def write_pages(app: Sphinx) -> None:
    """Write what has changed, so that an unchanged page is not read again."""
    root = Path(bayeslora.__file__).parent
    out = Path(app.srcdir, "reference", "modules")
    out.mkdir(exist_ok=True)
    pages = {f"{package}.rst": page(package, modules) for package, modules in packages(root).items()}
    for old in {path.name for path in out.glob("*.rst")} - set(pages):
        (out / old).unlink()
    for name, text in pages.items():
        place = out / name
        if not place.exists() or place.read_text() != text:
            place.write_text(text)


def leave_out_public(app: Sphinx, what: str, name: str, found: Any, skip: bool, options: Any) -> bool | None:
    """Skip, on a module's page, what has a page of its own."""
    public = what == "module" and name in bayeslora.__all__ and getattr(bayeslora, name) is found
    return True if public else None


def evaluate_annotations(app: Sphinx, function: Callable[..., Any], bound: bool) -> None:
    """Make types of a constructor's annotations, which Sphinx leaves as the texts they are in the source."""
    if getattr(function, "__name__", "") == "__init__" and function.__module__.startswith("bayeslora"):
        with suppress(NameError):  # a type that is imported for type checkers alone stays a text
            function.__annotations__ = get_type_hints(function)


def keep_sentence(app: Sphinx, what: str, name: str, found: Any, options: Any, lines: list[str]) -> None:
    """Napoleon takes what stands before a colon in a property's first line for its type, but not at the line's end."""
    if what in ("attribute", "data", "property") and lines:
        head, colon, tail = lines[0].partition(": ")
        lines[:1] = [f"{head}:", tail] if colon else [head]


def setup(app: Sphinx) -> dict[str, bool]:
    """Register."""
    app.connect("builder-inited", write_pages, priority=1)
    app.connect("autodoc-before-process-signature", evaluate_annotations)
    app.connect("autodoc-process-docstring", keep_sentence, priority=400)
    app.connect("autodoc-skip-member", leave_out_public)
    return {"parallel_read_safe": True}
