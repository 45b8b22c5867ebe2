"""The project's own protocol: consistent, nothing dropped, validation and test never the same."""

from __future__ import annotations

from bayeslora.datamodules.protocols.base import Prompt, Protocol, letters
from bayeslora.datamodules.question import Question


class Default(Protocol):
    """A passage where there is one, the question, lettered options on lines of their own, ``Answer:``."""

    name = "default"
    extensible = True

    def prompt(self, task: str, question: Question) -> Prompt:
        """The text up to the answer slot."""
        passage, spans = "", []
        if question.context:
            passage = f"Passage: {question.context}\n"
            spans.append((len("Passage:"), len(passage) - 1))
        asked = f"{passage}Question: {question.question}"
        # A span starts with the space in front of it, which most tokenizers make part of the first word.
        spans.append((len(asked) - len(question.question) - 1, len(asked)))
        options = "".join(
            f"\n{letter}. {option}" for letter, option in zip(letters(question), question.options, strict=True)
        )
        return Prompt(f"{asked}{options}\nAnswer:", tuple(spans))
