"""Encoded questions by epoch and row number, as the loaders ask for them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torch.utils.data import Dataset

from bayeslora.datamodules.batch import Item
from bayeslora.datamodules.encode import Encoded, LabelTokenEncoder
from bayeslora.datamodules.option_order import drawn_order, orders
from bayeslora.datamodules.question import Question

Key = tuple[int, int]  # epoch, row


class Rows(Dataset[Item]):
    """Questions that are the same in every epoch.

    Args:
        encoded: The questions; each with one or more encodings that are to stay together.
    """

    def __init__(self, encoded: Sequence[Sequence[Encoded]]) -> None:
        self.encoded = encoded

    def __len__(self) -> int:
        """Number of questions."""
        return len(self.encoded)

    def __getitem__(self, key: Key) -> Item:
        """Row number and encodings of a question."""
        _, row = key
        return row, self.encoded[row]

    @property
    def lengths(self) -> list[int]:
        """Length in tokens of each question."""
        return [encodings[0].length for encodings in self.encoded]


class ShuffledOptions(Rows):
    """Training questions whose options stand in another order in each epoch: a function of (seed, epoch, row).

    Args:
        encoded: The questions in the source's order, for their lengths.
        questions: The questions.
        encoder: Turns them into tokens.
        seed: Of the orders.
    """

    def __init__(
        self, encoded: Sequence[Sequence[Encoded]], questions: Sequence[Question], encoder: LabelTokenEncoder, seed: int
    ) -> None:
        super().__init__(encoded)
        self.questions, self.encoder, self.seed = questions, encoder, seed

    def __getitem__(self, key: Key) -> Item:
        """Row number and encoding of a question in an epoch."""
        epoch, row = key
        question = self.questions[row]
        order = drawn_order(len(question.options), self.seed, epoch, row)
        return row, self.encoder.encode([question.reordered(order)])


def in_orders(questions: Sequence[Question], encoder: LabelTokenEncoder, count: int) -> list[list[Encoded]]:
    """Each question with its options in ``count`` orders, the source's first.

    Args:
        questions: The questions.
        encoder: Turns a question into tokens.
        count: Number of orders.
    """
    plans = [orders(len(question.options), count) for question in questions]
    flat = [question.reordered(order) for question, plan in zip(questions, plans, strict=True) for order in plan]
    encoded = iter(encoder.encode(flat))
    return [[replace(next(encoded), order=order) for order in plan] for plan in plans]
