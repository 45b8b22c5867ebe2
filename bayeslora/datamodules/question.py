"""One multiple-choice question, whatever file or generator it came from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from bayeslora.metrics.answers import UNKNOWN
from bayeslora.streams import stream

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


@dataclass(frozen=True)
class Question:
    """A question, its options and, where it is known, the right one.

    Attributes:
        id: The source's own id, or ``split/row`` where the source has none.
        question: The question; the second sentence of a sentence pair.
        options: What to choose from, at least two.
        label: Index of the right option; -1 where it is not known.
        context: A passage in front of the question; the first sentence of a sentence pair.
        true_probs: The true distribution over the options, where it is known.
        marks: The source's own label of each option (A, B, .. or 1, 2, ..), where it has any.

    Example:
        >>> from bayeslora import Question
        >>> Question("q1", "Which is a fruit?", ("an apple", "a chair"), label=0).reordered((1, 0)).label
        1
    """

    id: str
    question: str
    options: tuple[str, ...]
    label: int = UNKNOWN
    context: str = ""
    true_probs: tuple[float, ...] | None = None
    marks: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Check what every reader needs: texts, two options or more, and a label among them if there is one."""
        texts = [("id", self.id), ("question", self.question), ("context", self.context)]
        for name, text in [*texts, *(("option", option) for option in self.options)]:
            if not isinstance(text, str):
                raise ValueError(f"question {self.id!r} has the {name} {text!r}; allowed: text")
            if not _is_unicode(text):
                raise ValueError(f"question {self.id!r} has the {name} {text!a}, which is not valid Unicode text")
        n = len(self.options)
        if n < 2:
            raise ValueError(f"question {self.id!r} has {n} option(s); allowed: 2 or more")
        if not (self.label == UNKNOWN or 0 <= self.label < n):
            raise ValueError(f"question {self.id!r} has label {self.label}; allowed: 0 to {n - 1}, or -1 for none")

    def reordered(self, order: Sequence[int]) -> Question:
        """The same question with option ``order[i]`` at place i."""
        probs = None if self.true_probs is None else tuple(self.true_probs[i] for i in order)
        options = tuple(self.options[i] for i in order)
        label = list(order).index(self.label) if self.labelled else UNKNOWN
        return replace(self, options=options, label=label, true_probs=probs)

    @property
    def labelled(self) -> bool:
        """Whether the right option is known."""
        return self.label != UNKNOWN

    @property
    def content(self) -> tuple[str, str, tuple[str, ...]]:
        """What is asked, without id and label, equal for duplicates."""
        return self.context, self.question, self.options

    @property
    def in_any_order(self) -> tuple[str, str, list[str]]:
        """:attr:`content`, the same whatever order the options stand in."""
        return self.context, self.question, sorted(self.options)

    @property
    def key(self) -> int:
        """A number of 57 bits made of :attr:`content` alone: the same for this question wherever it is asked."""
        return stream("question", *self.content[:2], *self.options) >> 6


def from_choices(row: Mapping[str, Any], fallback_id: str) -> Question:
    """A question from the hub's multiple-choice schema, or from that of MMLU.

    Args:
        row: ``{"id", "question" or "question_stem", "choices": {"text": [..], "label": [..]}, "answerKey"}``, or
            ``{"id", "question", "choices": [..], "answer": int or letter}``. An answer that is empty or missing is not
            known.
        fallback_id: The id of a row that has none.

    Raises:
        ValueError: what is wrong with the row.
    """
    choices, text = row["choices"], row["question"] if "question" in row else row["question_stem"]
    id_, context = _id(row, fallback_id), _context(row)
    if isinstance(choices, list):
        answer = next((row[name] for name in ("answer", "label", "answerKey") if name in row), None)
        return Question(id_, text, tuple(choices), _index(answer, LETTERS[: len(choices)]), context)
    if not isinstance(choices, Mapping):
        raise ValueError(f"choices are {choices!r}; allowed: a list of texts, or an object with lists text and label")
    texts, labels = choices["text"], list(choices["label"])
    if len(texts) != len(labels):
        raise ValueError(f"{len(texts)} option texts but {len(labels)} option labels")
    if len(set(labels)) < len(labels):
        raise ValueError(f"option labels are {labels}; allowed: each label once")
    key = row.get("answerKey")
    if key not in (*labels, "", None):
        raise ValueError(f"answerKey {key!r} is not among the options {labels}")
    label = labels.index(key) if key in labels else UNKNOWN
    return Question(id_, text, tuple(texts), label, context, marks=tuple(map(str, labels)))


def from_options(row: Mapping[str, Any], fallback_id: str) -> Question:
    """A question from the plain schema ``{"id", "question", "options": [..], "label": int, "context"}``.

    A label that is missing, null or -1 is not known.

    Args:
        row: The row, as read from JSON.
        fallback_id: The id of a row that has none.

    Raises:
        ValueError: what is wrong with the row.
    """
    if not isinstance(row["options"], list):
        raise ValueError(f"options are {row['options']!r}; allowed: a list of texts")
    id_, context = _id(row, fallback_id), _context(row)
    return Question(id_, row["question"], tuple(row["options"]), _index(row.get("label")), context)


def has_sentences(row: Mapping[str, Any]) -> bool:
    """Whether a row is a sentence, or a pair of them, to classify."""
    return "sentence1" in row or "sentence" in row


def from_sentences(row: Mapping[str, Any], classes: Sequence[str], fallback_id: str) -> Question:
    """A question from ``{"id", "sentence", "label"}``, or ``{"id", "sentence1", "sentence2", "label"}``.

    Args:
        row: The label is a class's name or number; one that is missing, null, empty or -1 is not known.
        classes: The classes' names.
        fallback_id: The id of a row that has none.

    Raises:
        ValueError: what is wrong with the row.
    """
    second = row["sentence2"] if "sentence1" in row else row["sentence"]
    label = _class(row.get("label"), classes)
    return Question(_id(row, fallback_id), second, tuple(classes), label, row.get("sentence1", ""))


def _class(label: Any, classes: Sequence[str]) -> int:
    """The number of a class from its number or name."""
    if label in (None, "", UNKNOWN):
        return UNKNOWN
    if isinstance(label, str) and label in classes:
        return list(classes).index(label)
    if type(label) is int and 0 <= label < len(classes):
        return label
    raise ValueError(f"label {label!r} is not a class; allowed: 0 to {len(classes) - 1}, or a class's name")


def _id(row: Mapping[str, Any], fallback_id: str) -> str:
    """The row's own id, unless it is missing or null."""
    return fallback_id if row.get("id") is None else str(row["id"])


def _context(row: Mapping[str, Any]) -> Any:
    """The row's passage, unless it is missing or null."""
    return "" if row.get("context") is None else row["context"]


def _index(value: Any, letters: str = "") -> int:
    """An answer as the index of an option; ``letters`` are allowed in its place."""
    if value in (None, ""):
        return UNKNOWN
    if isinstance(value, str) and len(value) == 1 and value in letters:
        return letters.index(value)
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"label {value!r} is not the index of an option")
    return value


def _is_unicode(text: str) -> bool:
    """Whether no half of a surrogate pair stands alone, which no file and no tokenizer takes."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
