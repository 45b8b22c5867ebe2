"""Options in other orders: drawn anew in training, averaged over in prediction."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from bayeslora.datamodules.sampler import permutation
from bayeslora.errors import UsageError
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
        prediction. Member logits do not survive an average of probabilities.

    Raises:
        UsageError: a Gaussian over logits in several orders.
    """
    if batch.option_order is None:
        return batch, predictive
    by_order = _by_order(batch, batch.option_order, predictive)
    count = by_order.shape[2]
    averaged = by_order.logsumexp(2) - torch.tensor(count).log()
    kept = torch.arange(0, len(batch), count, device=batch.label.device)
    first = {
        name: getattr(batch, name)[kept]
        for name in ("input_ids", "attention_mask", "answer_ids", "answer_mask", "label", "example_id")
    }
    questions = torch.arange(len(kept), device=batch.label.device)
    first |= {"example_of_row": questions, "option_of_row": torch.zeros_like(questions)}
    whole = None if batch.whole_labels is None else batch.whole_labels.select(kept)
    return replace(batch, **first, option_order=None, whole_labels=whole), Predictive(averaged, predictive.weights)


def orders_as_members(batch: AnswerBatch, predictive: Predictive) -> tuple[Tensor, Predictive]:
    """The same average not yet taken, for what is done to every member: each order of each of S members is a member.

    Args:
        batch: As for :func:`merge_orders`.
        predictive: What was predicted for it.

    Returns:
        Labels of the B questions, and their prediction of ``S * P`` members in the source's order of options.

    Raises:
        UsageError: a Gaussian over logits in several orders.
    """
    if batch.option_order is None:
        return batch.label, predictive
    by_order = _by_order(batch, batch.option_order, predictive)
    members, questions, count, width = by_order.shape
    log_probs = by_order.transpose(1, 2).reshape(members * count, questions, width)
    return batch.label[::count], Predictive(log_probs, predictive.weights.repeat_interleave(count) / count)


def _by_order(batch: AnswerBatch, option_order: Tensor, predictive: Predictive) -> Tensor:
    """Members' log-probabilities of B questions in P orders, options in the source's order: ``[S, B, P, C]``."""
    if predictive.gaussian is not None:
        raise UsageError(
            "a Gaussian over logits cannot be averaged over orders of the options; predict with samples, or set the "
            "data's permutations to 1"
        )
    _, counts = torch.unique_consecutive(batch.example_id, return_counts=True)
    count = int(counts[0])
    place = option_order.argsort(-1)  # where each option of the source stands
    members, rows, width = predictive.log_probs.shape
    in_source_order = predictive.log_probs.gather(-1, place.expand(members, -1, -1))
    return in_source_order.view(members, rows // count, count, width)
