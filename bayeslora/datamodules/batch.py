"""Encoded questions as one padded batch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from bayeslora.datamodules.continuations import pack
from bayeslora.datamodules.encode import Encoded
from bayeslora.types import AnswerBatch

Item = tuple[int, Sequence[Encoded]]  # row number within the dataset, and the question's one or more encodings


def collate(items: Sequence[Item], dataset: str, padding_side: str, pad_id: int) -> AnswerBatch:
    """Pad questions to the longest row and to the most answers among them.

    Args:
        items: The questions; several encodings of one (its options in other orders) follow one another.
        dataset: Name of the dataset they come from.
        padding_side: ``left`` or ``right``.
        pad_id: Token to pad with; masked out.
    """
    encoded = [encoding for _, encodings in items for encoding in encodings]
    rows = [row for item in encoded for row in item.rows]
    whole = None
    if encoded[0].labels is not None:
        rows, whole = pack(encoded)
    counts = torch.tensor([len(item.rows) for item in encoded])
    answers = [item.answers for item in encoded]
    types = None
    if encoded[0].types is not None:
        types = _pad([row for item in encoded for row in item.types or ()], padding_side, 0)
    return AnswerBatch(
        input_ids=_pad(rows, padding_side, pad_id),
        attention_mask=_pad([[1] * len(row) for row in rows], padding_side, 0),
        example_of_row=torch.repeat_interleave(torch.arange(len(encoded)), counts),
        option_of_row=torch.cat([torch.arange(len(item.rows)) for item in encoded]),
        answer_ids=_pad(answers, "right", 0),
        answer_mask=_pad([[1] * len(ids) for ids in answers], "right", 0).bool(),
        label=torch.tensor([item.label for item in encoded]),
        example_id=torch.tensor([row for row, encodings in items for _ in encodings]),
        dataset=dataset,
        token_type_ids=types,
        option_order=_orders(encoded, max(map(len, answers))),
        whole_labels=whole,
    )


def _orders(encoded: Sequence[Encoded], width: int) -> Tensor | None:
    """The order of each row's options, absent options at their own places."""
    orders = [item.order for item in encoded if item.order is not None]
    return torch.tensor([[*order, *range(len(order), width)] for order in orders]) if orders else None


def _pad(rows: Sequence[Sequence[int]], side: str, value: int) -> Tensor:
    width = max(map(len, rows))
    fill = [[value] * (width - len(row)) for row in rows]
    return torch.tensor([[*f, *r] if side == "left" else [*r, *f] for r, f in zip(rows, fill, strict=True)])
