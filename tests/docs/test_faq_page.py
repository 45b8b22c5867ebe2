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


def messages(tree: ast.Module) -> list[str]:
    """What a file's errors say, and its constants, which may be what one says."""
    calls = (node for node in ast.walk(tree) if isinstance(node, ast.Call) and node.args)
    raised = [call.args[0] for call in calls if getattr(call.func, "id", "") in ("UsageError", "RunError")]
    return [template(node) for node in raised + [n.value for n in tree.body if isinstance(n, ast.Assign)]]


MESSAGES = [text for file in (ROOT / "bayeslora").rglob("*.py") for text in messages(ast.parse(file.read_text()))]


@pytest.mark.parametrize("heading", HEADINGS)
def test_the_message_is_one_of_the_package(heading: str) -> None:
    parts = [re.escape(part) for part in heading.split("...")]
    assert max(map(len, parts)) > 10
    pattern = ".*".join(parts)
    assert any(re.fullmatch(pattern, message, re.DOTALL) for message in MESSAGES), heading


def test_the_page_has_messages() -> None:
    assert len(HEADINGS) >= 30
