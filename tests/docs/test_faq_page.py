"""Every message that the page about errors explains is one that the package raises, word for word."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "faq.md").read_text()
HEADINGS = re.findall(r"^### `(.+)`$", PAGE, re.MULTILINE)


def template(node: ast.expr) -> str:
    """The text of a message with a mark in the place of what is put into it."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(map(template, node.values))
    return "\0"


MESSAGES = [
    template(call.args[0])
    for file in (ROOT / "bayeslora").rglob("*.py")
    for call in ast.walk(ast.parse(file.read_text()))
    if isinstance(call, ast.Call) and getattr(call.func, "id", "") in ("UsageError", "RunError") and call.args
]


@pytest.mark.parametrize("heading", HEADINGS)
def test_the_message_is_one_of_the_package(heading: str) -> None:
    parts = [re.escape(part) for part in heading.split("...")]
    assert max(map(len, parts)) > 10
    pattern = ".*".join(parts)
    assert any(re.fullmatch(pattern, message, re.DOTALL) for message in MESSAGES), heading


def test_the_page_has_messages() -> None:
    assert len(HEADINGS) >= 30
