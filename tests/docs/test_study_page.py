"""What is said of the study, on its page and in the README, is what its tables hold."""

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
STUDY = ROOT / "docs" / "study"
NUMBER = re.compile(r"(?<![\d.])\d\.\d{3}(?!\d)")
SECTION = "## What a method adds to early stopping"


def rows() -> set[str]:
    """Every number with three digits in a table of the study."""
    lines = [line for page in STUDY.glob("*.md") for line in page.read_text().splitlines() if line.startswith("|")]
    return {number for line in lines for number in NUMBER.findall(line)}


def prose() -> str:
    """What the page says around early stopping, and every paragraph of the README that refers to it."""
    page = (STUDY / "README.md").read_text()
    section = page[page.index(SECTION) :].split("\n## ")[0]
    said = [line for line in section.splitlines() if not line.startswith("|")]
    paragraphs = (ROOT / "README.md").read_text().split("\n\n")
    return "\n".join([*said, *(paragraph for paragraph in paragraphs if "docs/study" in paragraph)])


def test_numbers_in_prose_are_those_of_the_tables() -> None:
    said = NUMBER.findall(prose())
    assert len(said) > 10
    assert set(said) <= rows()
