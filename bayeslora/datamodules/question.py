"""One multiple-choice question, whatever file or generator it came from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from bayeslora.streams import stream


@dataclass(frozen=True)
class Question:
    """A question, its options and the right one.

    Attributes:
        id: The source's own id, or ``split/row`` where the source has none.
        question: The question; the second sentence of a sentence pair.
        options: What to choose from, at least two.
        label: Index of the right option.
        context: A passage in front of the question; the first sentence of a sentence pair.
        true_probs: The true distribution over the options, where it is known.
        marks: The source's own label of each option (A, B, .. or 1, 2, ..), where it has any.
    """

    id: str
    question: str
    options: tuple[str, ...]
    label: int
    context: str = ""
    true_probs: tuple[float, ...] | None = None
    marks: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Check what every reader needs: texts, two options or more, and a label among them."""
        texts = [("question", self.question), ("context", self.context), *(("option", o) for o in self.options)]
        for name, text in texts:
            if not isinstance(text, str):
                raise ValueError(f"question {self.id!r} has the {name} {text!r}; allowed: text")
        if len(self.options) < 2:
            raise ValueError(f"question {self.id!r} has {len(self.options)} option(s); allowed: 2 or more")
        if not 0 <= self.label < len(self.options):
            raise ValueError(f"question {self.id!r} has label {self.label}; allowed: 0 to {len(self.options) - 1}")

    def reordered(self, order: Sequence[int]) -> Question:
        """The same question with option ``order[i]`` at place i."""
        probs = None if self.true_probs is None else tuple(self.true_probs[i] for i in order)
        options = tuple(self.options[i] for i in order)
        return replace(self, options=options, label=list(order).index(self.label), true_probs=probs)

    @property
    def content(self) -> tuple[str, str, tuple[str, ...]]:
        """What is asked, without id and label: equal for duplicates."""
        return self.context, self.question, self.options

    @property
    def key(self) -> int:
        """A number of 57 bits made of :attr:`content` alone: the same for this question wherever it is asked."""
        return stream("question", *self.content[:2], *self.options) >> 6


def from_choices(row: Mapping[str, Any], fallback_id: str) -> Question:
    """A question from the hub's multiple-choice schema.

    Args:
        row: ``{"id", "question" or "question_stem", "choices": {"text": [..], "label": [..]}, "answerKey"}``.
        fallback_id: The id of a row that has none.

    Raises:
        ValueError: what is wrong with the row.
    """
    texts, labels = row["choices"]["text"], list(row["choices"]["label"])
    if len(texts) != len(labels):
        raise ValueError(f"{len(texts)} option texts but {len(labels)} option labels")
    if row["answerKey"] not in labels:
        raise ValueError(f"answerKey {row['answerKey']!r} is not among the options {labels}")
    text = row["question"] if "question" in row else row["question_stem"]
    id_, label = str(row.get("id", fallback_id)), labels.index(row["answerKey"])
    return Question(id_, text, tuple(texts), label, row.get("context", ""), marks=tuple(map(str, labels)))


def from_options(row: Mapping[str, Any], fallback_id: str) -> Question:
    """A question from the plain schema ``{"id", "question", "options": [..], "label": int, "context"}``.

    Raises:
        ValueError: what is wrong with the row.
    """
    label = row["label"]
    if isinstance(label, bool) or not isinstance(label, int):
        raise ValueError(f"label {label!r} is not the index of an option")
    if not isinstance(row["options"], list):
        raise ValueError(f"options are {row['options']!r}; allowed: a list of texts")
    id_, context = str(row.get("id", fallback_id)), row.get("context", "")
    return Question(id_, row["question"], tuple(row["options"]), label, context)
