"""Labels of several tokens: found behind their prompt, ended, and packed behind it into one row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from bayeslora.datamodules.encode import Continuations, Encoded, LabelTokenEncoder, enough_labels
from bayeslora.datamodules.question import Question
from bayeslora.datamodules.tokenizer import token_ids
from bayeslora.datamodules.writer import PromptWriter
from bayeslora.errors import UsageError
from bayeslora.types import WholeLabels


class ContinuationEncoder(LabelTokenEncoder):
    """One row a question: the prompt, and behind it the tokens of every label, each of which sees the prompt alone.

    A label is scored as a whole, with what ends it, since otherwise ``no`` is never less likely than ``no answer``:
    prompt, separator, label and end are turned into tokens as one text, of which the prompt's own tokens must be the
    start.

    Args:
        writer: Writes the prompts; its protocol has an ``end``.
        tokenizer: A Hugging Face tokenizer.
        max_length: Most tokens of a prompt with its longest label.

    Raises:
        UsageError: an end that there is none of: a tokenizer without an end-of-sequence token.
    """

    def __init__(self, writer: PromptWriter, tokenizer: Any, max_length: int) -> None:
        super().__init__(writer, tokenizer, max_length)
        self.end_text, self.end_ids = self._end()
        self.known: dict[str, tuple[int, ...]] = {}

    def _end(self) -> tuple[str, tuple[int, ...]]:
        """What ends every label, as text and as tokens."""
        end = self.protocol.end
        if end != "stop":
            return str(end), ()
        if self.writer.stop is not None:
            return self.writer.stop, ()
        if self.tokenizer.eos_token_id is None:
            raise UsageError(
                f"end of protocol {self.protocol.name!r} is stop, but the tokenizer {self.tokenizer.name_or_path!r} "
                'has no end-of-sequence token; give a text, such as "\\n"'
            )
        return "", (self.tokenizer.eos_token_id,)

    def encode(self, questions: Sequence[Question]) -> list[Encoded]:
        """Encode questions, checking each one's labels behind its own prompt.

        Raises:
            UsageError: a label whose first token swallows the end of the prompt, one that begins another, or a prompt
                that cannot be cut to ``max_length``.
        """
        texts = [self.writer.write(question).text for question in questions]
        labels = [self.protocol.labels(self.writer.task, question) for question in questions]
        enough_labels(questions, labels)
        bodies = token_ids(self.tokenizer, texts, not self.writer.bare)
        found = [
            self._find(question, names, text) for question, names, text in zip(questions, labels, texts, strict=True)
        ]
        # Every prompt is checked with one of its labels, so that each label is checked behind very many prompts.
        chosen = [names[i % len(names)] for i, names in enumerate(labels)]
        for body, whole, label, text in zip(bodies, self._ids(texts, chosen), chosen, texts, strict=True):
            if (*whole, *self.end_ids) != (*body, *self.known[label]):
                self._refuse(label, text, body, whole)
        return [
            self._encoded(question, names, body, ids)
            for question, names, body, ids in zip(questions, labels, bodies, found, strict=True)
        ]

    def _encoded(
        self, question: Question, names: Sequence[str], body: list[int], ids: tuple[tuple[int, ...], ...]
    ) -> Encoded:
        row = self._fit(question, body, self.max_length - max(map(len, ids)) + 1)
        sizes = {"tokens": [len(own) for own in ids], "characters": [len(name) for name in names]}
        normalised = self.protocol.normalise is not None
        weights = tuple(1 / size for size in sizes[str(self.protocol.normalise)]) if normalised else (1.0,) * len(ids)
        first = tuple(own[0] for own in ids)
        cut = len(row) < len(self._whole(body))
        return Encoded((row,), None, first, question.label, cut, labels=Continuations(ids, weights, normalised))

    def _find(self, question: Question, labels: Sequence[str], prompt: str) -> tuple[tuple[int, ...], ...]:
        """The tokens of each label with its end; no label begins another."""
        missing = [label for label in dict.fromkeys(labels) if label not in self.known]
        if missing:
            (body,) = token_ids(self.tokenizer, [prompt], not self.writer.bare)
            for label, whole in zip(missing, self._ids([prompt] * len(missing), missing), strict=True):
                if whole[: len(body)] != body or len(whole) == len(body):
                    self._refuse(label, prompt, body, whole)
                self.known[label] = (*whole[len(body) :], *self.end_ids)
        found = tuple(self.known[label] for label in labels)
        ordered = sorted(zip(found, labels, strict=True))  # what begins another stands right in front of such a one
        for (ids, label), (longer, other) in pairwise(ordered):
            if longer[: len(ids)] == ids:
                raise UsageError(
                    f"question {question.id!r} has the label {label!r}, whose tokens, its end included, begin those of "
                    f"{other!r}, so that it would never be the less likely one; use other words, or another end"
                )
        return found

    def _ids(self, prompts: Sequence[str], labels: Sequence[str]) -> list[list[int]]:
        pairs = zip(prompts, labels, strict=True)
        texts = [prompt + self.writer.separator + label + self.end_text for prompt, label in pairs]
        return token_ids(self.tokenizer, texts, not self.writer.bare)

    def _refuse(self, label: str, prompt: str, body: list[int], whole: list[int]) -> None:
        pairs = zip(body, whole, strict=False)
        same = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(body), len(whole)))
        shown = " + ".join(map(repr, self.tokenizer.convert_ids_to_tokens(whole[same:]))) or "no token"
        raise UsageError(
            f"label {label!r} behind {(prompt + self.writer.separator)[-12:]!r} became {shown}: the prompt's own "
            "tokens must stay as they are, and the label's be the same behind every prompt; let the separator begin "
            "with the space that the label's first token takes, or end the template in another way"
        )


@dataclass(frozen=True)
class _Packed:
    """One question as one row, its labels behind its prompt.

    Attributes:
        row: Token ids.
        segments: Zero at the prompt, c + 1 at a token of label c.
        offsets: Zero at the prompt, 1, 2, .. at the tokens of a label.
        ids: For each label, the tokens to predict.
        places: For each of those, where it is predicted, counted from the row's end (1 is the last token).
    """

    row: list[int]
    segments: list[int]
    offsets: list[int]
    ids: list[list[int]]
    places: list[list[int]]


def _pack_one(prompt: Sequence[int], labels: Sequence[Sequence[int]]) -> _Packed:
    behind = sum(len(label) - 1 for label in labels)  # the last token of a label is predicted, never fed
    row, segments, offsets = list(prompt), [0] * len(prompt), [0] * len(prompt)
    places, left = [], behind
    for number, label in enumerate(labels, 1):
        fed = label[:-1]
        places.append([behind + 1, *range(left, left - len(fed), -1)])
        row += fed
        segments += [number] * len(fed)
        offsets += range(1, len(fed) + 1)
        left -= len(fed)
    return _Packed(row, segments, offsets, [list(label) for label in labels], places)


def pack(encoded: Sequence[Encoded]) -> tuple[list[list[int]], WholeLabels]:
    """Questions whose labels are of several tokens as one row each, and where their labels are.

    Args:
        encoded: B questions with ``labels``.

    Returns:
        B rows, and what belongs to them when they are padded on the left.
    """
    packed = [_pack_one(item.rows[0], item.labels.ids) for item in encoded if item.labels is not None]
    weights = [
        [[weight] * len(ids) for weight, ids in zip(item.labels.weights, item.labels.ids, strict=True)]
        for item in encoded
        if item.labels is not None
    ]
    return [one.row for one in packed], WholeLabels(
        segments=_left([one.segments for one in packed]),
        offsets=_left([one.offsets for one in packed]),
        ids=_cube([one.ids for one in packed], 0),
        places=_cube([one.places for one in packed], 1),
        weights=_cube(weights, 0.0),
        reach=max(1 + sum(len(ids) - 1 for ids in one.ids) for one in packed),
        normalised=any(item.labels is not None and item.labels.normalised for item in encoded),
    )


def _left(rows: Sequence[Sequence[int]]) -> Tensor:
    width = max(map(len, rows))
    return torch.tensor([[*[0] * (width - len(row)), *row] for row in rows])


def _cube(values: Sequence[Sequence[Sequence[Any]]], fill: float) -> Tensor:
    """Lists of B questions' lists of labels as ``[B, C, L]``."""
    options, length = max(map(len, values)), max(len(own) for one in values for own in one)
    empty = [fill] * length
    full = [[[*own, *empty[len(own) :]] for own in one] + [empty] * (options - len(one)) for one in values]
    return torch.tensor(full)
