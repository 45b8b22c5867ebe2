"""Options in other orders: drawn anew in training, averaged over in prediction."""

from __future__ import annotations

from dataclasses import replace

import torch

from bayeslora.datamodules.sampler import permutation
from bayeslora.types import AnswerBatch, Predictive


def drawn_order(n_options: int, *stream: int | str) -> list[int]:
    """A random order of the options; ``stream`` names the draw.

    Args:
        n_options: Number C of options.
        *stream: Names the draw.
    """
    return permutation(n_options, "options", *stream)


def orders(n_options: int, count: int) -> list[tuple[int, ...]]:
    """The first ``count`` orders to average a prediction over; the first is the source's own.

    They are cyclic shifts of the source's order, then of further random ones (the same in every run), so that each
    option has stood at each place equally often whenever ``count`` is a multiple of ``n_options``.

    Args:
        n_options: Number C of options.
        count: How many orders.
    """
    blocks = [list(range(n_options))]
    blocks += [drawn_order(n_options, block) for block in range(1, -(-count // n_options))]
    shifts = [tuple(block[shift:] + block[:shift]) for block in blocks for shift in range(n_options)]
    return shifts[:count]


def merge_orders(batch: AnswerBatch, predictive: Predictive) -> tuple[AnswerBatch, Predictive]:
    """Average the predictions of P orders of each question, member by member, in the source's order of options.

    Args:
        batch: ``B * P`` rows that carry ``option_order``; one without it is returned as it is, with its prediction.
        predictive: What was predicted for them.

    Returns:
        The B questions (ids, labels and mask; their tokens are those of the first order, the source's own), and their
        prediction. Member logits and the law over logits do not survive an average of probabilities.
    """
    if batch.option_order is None:
        return batch, predictive
    _, counts = torch.unique_consecutive(batch.example_id, return_counts=True)
    count = int(counts[0])
    place = batch.option_order.argsort(-1)  # where each option of the source stands
    members, rows, width = predictive.log_probs.shape
    in_source_order = predictive.log_probs.gather(-1, place.expand(members, -1, -1))
    averaged = in_source_order.view(members, rows // count, count, width).logsumexp(2) - torch.tensor(count).log()
    kept = torch.arange(0, rows, count, device=batch.label.device)
    first = {
        name: getattr(batch, name)[kept]
        for name in ("input_ids", "attention_mask", "answer_ids", "answer_mask", "label", "example_id")
    }
    questions = torch.arange(len(kept), device=batch.label.device)
    first |= {"example_of_row": questions, "option_of_row": torch.zeros_like(questions)}
    whole = None if batch.whole_labels is None else batch.whole_labels.select(kept)
    return replace(batch, **first, option_order=None, whole_labels=whole), Predictive(averaged, predictive.weights)
