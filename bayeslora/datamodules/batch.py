"""Encoded questions as one padded batch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from bayeslora.datamodules.encode import Encoded
from bayeslora.types import AnswerBatch


def collate(items: Sequence[tuple[int, Encoded]], dataset: str, padding_side: str, pad_id: int) -> AnswerBatch:
    """Pad questions to the longest row and to the most answers among them.

    Args:
        items: Row number within the dataset and encoded form of each question.
        dataset: Name of the dataset they come from.
        padding_side: ``left`` or ``right``.
        pad_id: Token to pad with; masked out.
    """
    encoded = [item for _, item in items]
    rows = [row for item in encoded for row in item.rows]
    counts = torch.tensor([len(item.rows) for item in encoded])
    answers = [list(item.answers) for item in encoded]
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
        example_id=torch.tensor([row for row, _ in items]),
        dataset=dataset,
        token_type_ids=types,
    )


def _pad(rows: Sequence[Sequence[int]], side: str, value: int) -> Tensor:
    width = max(map(len, rows))
    fill = [[value] * (width - len(row)) for row in rows]
    return torch.tensor([[*f, *r] if side == "left" else [*r, *f] for r, f in zip(rows, fill, strict=True)])
