"""How far a method's prediction is from the gold posterior's, question by question."""

from __future__ import annotations

import torch
from torch import Tensor

Scores = dict[str, float | None]


def distances(probs: Tensor, epistemic: Tensor, gold: Tensor, gold_epistemic: Tensor, truth: Tensor) -> Scores:
    r"""Means over questions, of the method's probabilities p against the gold's g.

    ``tv`` is the total variation :math:`\frac12 \sum_c |p_c - g_c|`, ``agreement`` the share of questions with the same
    most probable option, ``kl`` is :math:`KL(g \| p)` in nats (Izmailov et al., 2021, arXiv:2104.14421, compare by the
    first two), ``mi_correlation`` the rank correlation of mutual information with the gold's, ``mi`` the method's mean
    mutual information, and ``nll`` and ``accuracy`` are those expected under the true probabilities.

    Args:
        probs: p ``[N, C]``.
        epistemic: Mutual information of the method ``[N]``; zero for a point.
        gold: g ``[N, C]``.
        gold_epistemic: Mutual information of the gold ``[N]``.
        truth: True probabilities ``[N, C]``.
    """
    logs = probs.clamp_min(torch.finfo(probs.dtype).tiny).log()
    return {
        "tv": float((probs - gold).abs().sum(-1).mean() / 2),
        "agreement": float((probs.argmax(-1) == gold.argmax(-1)).double().mean()),
        "kl": float((torch.xlogy(gold, gold) - gold * logs).sum(-1).mean()),
        "mi_correlation": rank_correlation(epistemic, gold_epistemic),
        "mi": float(epistemic.mean()),
        "nll": float(-(truth * logs).sum(-1).mean()),
        "accuracy": float(truth.gather(-1, probs.argmax(-1, keepdim=True)).mean()),
    }


def rank_correlation(one: Tensor, other: Tensor) -> float | None:
    """Spearman's; None where the first does not vary, as the mutual information of a point does not."""
    if float(one.max() - one.min()) < 1e-9:  # rounding of zero has ranks, which mean nothing
        return None
    from scipy.stats import spearmanr

    return float(spearmanr(one.numpy(), other.numpy()).statistic)


def mixed(member_probs: Tensor) -> tuple[Tensor, Tensor]:
    """Averaged probabilities ``[N, C]`` and mutual information ``[N]`` of members ``[S, N, C]``."""
    probs = member_probs.mean(0)
    entropy = -torch.xlogy(member_probs, member_probs).sum(-1).mean(0)
    return probs, (-torch.xlogy(probs, probs).sum(-1) - entropy).clamp_min(0)
