"""Batches of random questions."""

import torch

from bayeslora.types import AnswerBatch
from tests.helpers.sizes import VOCABULARY


def label_token_batch(lengths: list[int], options: list[int], seed: int = 0, extra_padding: int = 0) -> AnswerBatch:
    """Random questions of given lengths and option counts, one left-padded row each."""
    generator = torch.Generator().manual_seed(seed)
    width, most = max(lengths) + extra_padding, max(options)
    ids = torch.zeros(len(lengths), width, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, length in enumerate(lengths):
        ids[row, width - length :] = torch.randint(10, VOCABULARY, (length,), generator=generator)
        mask[row, width - length :] = 1
    answer_mask = torch.arange(most) < torch.tensor(options)[:, None]
    rows = torch.arange(len(lengths))
    return AnswerBatch(
        input_ids=ids,
        attention_mask=mask,
        example_of_row=rows,
        option_of_row=torch.zeros_like(rows),
        answer_ids=torch.arange(3, 3 + most).expand(len(lengths), -1) * answer_mask,
        answer_mask=answer_mask,
        label=torch.zeros_like(rows),
        example_id=rows.clone(),
        dataset="random",
    )


def option_row_batch(options: list[int], seed: int = 0, extra_padding: int = 0) -> AnswerBatch:
    """Random questions whose options are right-padded rows of their own."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(4, 12, (sum(options),), generator=generator).tolist()
    width = max(lengths) + extra_padding
    ids = torch.ones(len(lengths), width, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, length in enumerate(lengths):
        ids[row, :length] = torch.randint(10, VOCABULARY, (length,), generator=generator)
        mask[row, :length] = 1
    answer_mask = torch.arange(max(options)) < torch.tensor(options)[:, None]
    example = torch.repeat_interleave(torch.arange(len(options)), torch.tensor(options))
    option = torch.cat([torch.arange(n) for n in options])
    zeros = torch.zeros(len(options), dtype=torch.long)
    return AnswerBatch(
        input_ids=ids,
        attention_mask=mask,
        example_of_row=example,
        option_of_row=option,
        answer_ids=torch.zeros_like(answer_mask, dtype=torch.long),
        answer_mask=answer_mask,
        label=zeros,
        example_id=torch.arange(len(options)),
        dataset="random",
    )


def one(batch: AnswerBatch, index: int) -> AnswerBatch:
    """The question ``index`` of a label-token batch, alone and without padding."""
    length = int(batch.attention_mask[index].sum())
    row = slice(index, index + 1)
    return AnswerBatch(
        input_ids=batch.input_ids[row, -length:],
        attention_mask=batch.attention_mask[row, -length:],
        example_of_row=torch.zeros(1, dtype=torch.long),
        option_of_row=torch.zeros(1, dtype=torch.long),
        answer_ids=batch.answer_ids[row],
        answer_mask=batch.answer_mask[row],
        label=batch.label[row],
        example_id=batch.example_id[row],
        dataset=batch.dataset,
    )
