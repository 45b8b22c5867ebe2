"""The pages: their code blocks and commands, and data for the code on them."""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.utils.data import DataLoader

ROOT = Path(__file__).parents[2]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted(path for path in (ROOT / "docs").rglob("*.md") if "_" not in {part[0] for part in path.parts}),
]
_FENCE = re.compile(r"^(```+)([^\n`]*)\n(.*?)^\1 *$", re.MULTILINE | re.DOTALL)
_INDENTED = re.compile(r"(?<=\n\n)(?: {4}.*\n)+")
_COMMANDS = ("bayeslora", "curl", "docker", "git", "make", "pip", "python", "tensorboard", "echo", "cd")
NOT_RUN = "not run:"  # in the line of a fence, followed by why


@dataclass(frozen=True)
class Block:
    """A code block of a page.

    Attributes:
        language: The first word behind the fence.
        text: What it holds.
        not_run: Why it is not run, where it says so.
    """

    language: str
    text: str
    not_run: str


def blocks(page: Path, *languages: str) -> list[Block]:
    """The fenced code blocks of a page in some languages, in their order."""
    found = []
    for _, info, text in _FENCE.findall(page.read_text()):
        language, _, rest = info.strip().partition(" ")
        if language in languages:
            assert not rest or rest.startswith(NOT_RUN), f"{page.name}: ```{info}"
            found.append(Block(language, text, rest.removeprefix(NOT_RUN).strip()))
    return found


def commands(page: Path) -> Iterator[list[str]]:
    """The shell commands of a page, in fences and in indented blocks: words, without variables in front of them."""
    texts = [block.text for block in blocks(page, "bash") if not block.not_run]
    bare = _FENCE.sub("", page.read_text())
    texts += [re.sub("^    ", "", text, flags=re.MULTILINE) for text in _INDENTED.findall(bare)]
    for text in texts:
        for line in text.replace("\\\n", " ").splitlines():
            words = re.sub(r"^(\w+=\S+ )+", "", line).split(" ", 1)
            if words[0] in _COMMANDS:
                yield shlex.split(" ".join(words), comments=True)


def loader(n: int) -> DataLoader:
    return DataLoader(rows(n), batch_size=8)


def rows(n: int) -> list[dict[str, torch.Tensor]]:
    """Tokenised texts of three classes."""
    ids = torch.randint(0, 40, (n, 6), generator=torch.Generator().manual_seed(n))
    return [{"input_ids": row, "attention_mask": torch.ones_like(row), "labels": row[0] % 3} for row in ids]
