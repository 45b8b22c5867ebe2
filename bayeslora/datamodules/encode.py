"""Questions as rows of tokens for causal models: a prompt whose last position is to predict a label token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from bayeslora.datamodules.question import Question
from bayeslora.datamodules.tokenizer import LabelTokens, as_written, leading_specials, token_ids
from bayeslora.datamodules.writer import PromptWriter
from bayeslora.errors import UsageError


@dataclass(frozen=True)
class Continuations:
    """The labels of one question where they are of several tokens.

    Attributes:
        ids: Token ids of each label with what ends it.
        weights: What the log-probability of each token of a label is multiplied by: one, or one over its length.
        normalised: Whether that is one over its length.
    """

    ids: tuple[tuple[int, ...], ...]
    weights: tuple[float, ...]
    normalised: bool = False


@dataclass(frozen=True)
class Encoded:
    """One question as tokens.

    Attributes:
        rows: Token ids of each row.
        types: Segment ids of each row, for tokenizers that give them.
        answers: Vocabulary id of each answer's label, or of its first token; zeros where answers are not label tokens.
        label: Index of the right answer.
        cut: Whether tokens (or worked examples) were lost to ``max_length``.
        order: Source's index of the option at each place, where the order was changed for prediction.
        labels: The labels where they are of several tokens, to be packed behind the row.
    """

    rows: tuple[list[int], ...]
    types: tuple[list[int], ...] | None
    answers: tuple[int, ...]
    label: int
    cut: bool = False
    order: tuple[int, ...] | None = None
    labels: Continuations | None = None

    @property
    def _behind(self) -> list[int]:
        """How many tokens of each label are fed behind the prompt: all but the last, which is only predicted."""
        return [0] if self.labels is None else [len(ids) - 1 for ids in self.labels.ids]

    @property
    def length(self) -> int:
        """Tokens of the longest row, with the labels that are packed behind it."""
        return max(map(len, self.rows)) + sum(self._behind)

    @property
    def positions(self) -> int:
        """Positions of the longest row, where labels that are packed behind it all start where it ends."""
        return max(map(len, self.rows)) + max(self._behind)


class LabelTokenEncoder:
    """One row a question: the prompt, whose last position is to predict the label's token.

    Args:
        writer: Writes the prompts.
        tokenizer: A Hugging Face tokenizer.
        max_length: Longest row, special tokens included.
    """

    def __init__(self, writer: PromptWriter, tokenizer: Any, max_length: int) -> None:
        self.writer, self.tokenizer, self.max_length = writer, tokenizer, max_length
        self.protocol = writer.protocol
        self.labels = LabelTokens(tokenizer, self.protocol.labels_from, writer.separator, not writer.bare)
        self.prefix = leading_specials(tokenizer) if writer.bare else []
        self.suffix = [tokenizer.eos_token_id] if self.protocol.ends_with_eos(writer.task) else []

    def encode(self, questions: Sequence[Question]) -> list[Encoded]:
        """Encode questions, checking each one's label tokens in context.

        Raises:
            UsageError: labels that are not one token each, or a prompt that cannot be cut to ``max_length``.
        """
        texts = [self.writer.write(question).text for question in questions]
        labels = [self.protocol.labels(self.writer.task, question) for question in questions]
        enough_labels(questions, labels)
        bodies = token_ids(self.tokenizer, texts, not self.writer.bare)
        answers = [self.labels.find(names, text) for names, text in zip(labels, texts, strict=True)]
        # Every prompt is checked with one of its labels, so that each label is checked behind very many prompts.
        self.labels.check(texts, bodies, [names[i % len(names)] for i, names in enumerate(labels)])
        return [
            Encoded((row,), None, tuple(ids), question.label, cut=len(row) < len(self._whole(body)))
            for question, body, ids in zip(questions, bodies, answers, strict=True)
            for row in [self._fit(question, body, self.max_length)]
        ]

    def _whole(self, body: list[int]) -> list[int]:
        return self.prefix + body + self.suffix

    def _fit(self, question: Question, body: list[int], room: int) -> list[int]:
        """The row of a prompt's tokens, cut to ``room`` tokens as the protocol cuts."""
        if len(self._whole(body)) <= room:
            return self._whole(body)
        if self.protocol.cut == "right":
            return (self.prefix + body)[: room - len(self.suffix)] + self.suffix
        for shots in range(self.writer.shots - 1, -1, -1):
            (body,) = token_ids(self.tokenizer, [self.writer.write(question, shots).text], not self.writer.bare)
            if len(self._whole(body)) <= room:
                return self._whole(body)
        return self._whole(self._cut_front(question, len(self._whole(body)) - room))

    def _cut_front(self, question: Question, excess: int) -> list[int]:
        """The prompt's tokens without the first ``excess`` of its passage, then of its question."""
        prompt = self.writer.write(question, 0)
        tokens = self.tokenizer(prompt.text, return_offsets_mapping=True, **as_written(not self.writer.bare))
        lost: set[int] = set()
        for start, end in prompt.spans:
            inside = [i for i, (a, b) in enumerate(tokens["offset_mapping"]) if start <= a and b <= end]
            lost.update(inside[: excess - len(lost)])
        if len(lost) < excess:
            raise UsageError(
                f"question {question.id!r} needs {self.max_length + excess - len(lost)} tokens without its question "
                f"(for options and template alone), max_length is {self.max_length}; raise max_length"
            )
        return [token for i, token in enumerate(tokens["input_ids"]) if i not in lost]


def enough_labels(questions: Sequence[Question], labels: Sequence[Sequence[str]]) -> None:
    """Check that every option has a label.

    Args:
        questions: The questions.
        labels: The labels, as text.
    """
    for question, names in zip(questions, labels, strict=True):
        if len(names) < len(question.options):
            raise UsageError(
                f"question {question.id!r} has {len(question.options)} options, the protocol labels for {len(names)}; "
                "use protocol 'default' (up to 26), or your own with more words"
            )
