"""Selective prediction: what a method gets wrong if it may decline the questions it is least confident of."""

import torch
from torch import Tensor


def risk_curve(confidence: Tensor, correct: Tensor) -> Tensor:
    r"""Error rate among the k most confident answers, for k = 1 .. N (Geifman & El-Yaniv 2017).

    Questions of equal confidence cannot be told apart: each counts with the error rate of its group, which is what any
    order among them gives on average. The curve is therefore the same in whatever order the questions come.

    Args:
        confidence: Confidence in each answer ``[N]``, on any scale.
        correct: Whether the answer is right, bool ``[N]``.

    Returns:
        Risks ``[N]``, float64; the coverage of the k-th is k/N.
    """
    _, group, size = torch.unique(confidence, return_inverse=True, return_counts=True)
    errors = torch.zeros(len(size), dtype=torch.float64, device=confidence.device)
    errors.index_add_(0, group, (~correct.bool()).double())
    expected = (errors / size).flip(0).repeat_interleave(size.flip(0))
    return expected.cumsum(0) / torch.arange(1, len(expected) + 1, device=confidence.device)
