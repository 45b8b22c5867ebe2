"""Questions as rows for encoders: one row an option, or one row a sentence pair."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bayeslora.datamodules.encode import Encoded
from bayeslora.datamodules.question import Question
from bayeslora.errors import UsageError


class HeadEncoder:
    """Rows as an encoder's own tokenizer pairs them: (passage and question, option), or (sentence1, sentence2).

    An over-long row loses the front of its first segment.

    Args:
        tokenizer: A Hugging Face tokenizer.
        max_length: Longest row, special tokens included.
        pairs: Whether each question is a sentence or sentence pair to classify: one row, whatever its options.
    """

    def __init__(self, tokenizer: Any, max_length: int, pairs: bool) -> None:
        self.tokenizer, self.max_length, self.pairs = tokenizer, max_length, pairs

    def encode(self, questions: Sequence[Question]) -> list[Encoded]:
        """Encode questions.

        Raises:
            UsageError: an option longer than ``max_length``.
        """
        texts = [self._segments(question) for question in questions]
        flat = [pair for pairs in texts for pair in pairs]
        if not flat:
            return []
        single = all(second is None for _, second in flat)
        inputs = [first for first, _ in flat] if single else flat
        tokens = self.tokenizer(inputs, verbose=False, split_special_tokens=True)  # what a question says is text
        encoded, start = [], 0
        for question, pairs in zip(questions, texts, strict=True):
            rows = range(start, start + len(pairs))
            kept = [self._kept(question, tokens, row) for row in rows]
            ids = tuple([tokens["input_ids"][row][i] for i in keep] for row, keep in zip(rows, kept, strict=True))
            types = None
            if "token_type_ids" in tokens:
                types = tuple(
                    [tokens["token_type_ids"][row][i] for i in keep] for row, keep in zip(rows, kept, strict=True)
                )
            cut = any(len(keep) < len(tokens["input_ids"][row]) for row, keep in zip(rows, kept, strict=True))
            encoded.append(Encoded(ids, types, (0,) * len(question.options), question.label, cut))
            start += len(pairs)
        return encoded

    def _segments(self, question: Question) -> list[tuple[str, str | None]]:
        if self.pairs:
            return [(question.context, question.question) if question.context else (question.question, None)]
        asked = f"{question.context} {question.question}".strip()
        return [(asked, option) for option in question.options]

    def _kept(self, question: Question, tokens: Any, row: int) -> list[int]:
        """Positions of a row that remain when the front of its first segment goes."""
        length = len(tokens["input_ids"][row])
        first = [i for i, segment in enumerate(tokens.sequence_ids(row)) if segment == 0]
        excess = max(0, length - self.max_length)
        if excess > len(first):
            raise UsageError(
                f"question {question.id!r} needs {length - len(first)} tokens for an option alone, max_length is "
                f"{self.max_length}; raise max_length"
            )
        lost = set(first[:excess])
        return [i for i in range(length) if i not in lost]
