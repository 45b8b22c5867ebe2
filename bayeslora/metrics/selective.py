"""Selective prediction: what a method gets wrong if it may decline the questions it is least confident of."""

import math
from typing import Any

import torch
from torch import Tensor

from bayeslora.metrics import scores
from bayeslora.metrics.ranking import Ranking


def average_ties(order: Tensor, values: Tensor) -> Tensor:
    """Values in the order of descending ``order``, each replaced by the mean of those it ties with.

    Questions of equal confidence cannot be told apart; their mean is what any order among them gives on average, so
    that what is computed from the result does not depend on how the questions came.

    Args:
        order: What to sort by ``[N]``.
        values: Numbers ``[N]``.
    """
    _, group, size = torch.unique(order, return_inverse=True, return_counts=True)
    total = torch.zeros(len(size), dtype=torch.float64, device=order.device).index_add_(0, group, values.double())
    return (total / size).flip(0).repeat_interleave(size.flip(0))


def risk_curve(confidence: Tensor, correct: Tensor) -> Tensor:
    r"""Error rate among the k most confident answers, for k = 1 .. N (Geifman & El-Yaniv 2017).

    Args:
        confidence: Confidence in each answer ``[N]``, on any scale; ties as in :func:`average_ties`.
        correct: Whether the answer is right, bool ``[N]``.

    Returns:
        Risks ``[N]``, float64; the coverage of the k-th is k/N.
    """
    wrong = average_ties(confidence, ~correct.bool())
    return wrong.cumsum(0) / torch.arange(1, len(wrong) + 1, device=confidence.device)


class Selective(Ranking):
    """Confidences and whether the answers are right."""

    def update(self, probs: Tensor, label: Tensor) -> None:  # type: ignore[override]  # other inputs, same states
        """Add a batch of questions: probabilities ``[B, C]`` and labels ``[B]``."""
        super().update(scores.confidence(probs), scores.correct(probs, label))


class AURC(Selective):
    """Area under the risk-coverage curve: the mean of :func:`risk_curve` over all coverages."""

    higher_is_better = False

    def compute(self) -> Tensor:
        """The area over all questions seen."""
        return risk_curve(*self.gathered()).mean()


class AccuracyAtCoverage(Selective):
    """Accuracy among the most confident answers.

    Args:
        coverage: Fraction of the questions answered, above 0 and at most 1; rounded up to a whole question.
        kwargs: Those of ``torchmetrics.Metric``.
    """

    def __init__(self, coverage: float, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if not 0 < coverage <= 1:
            raise ValueError(f"coverage is {coverage}; allowed: above 0, at most 1")
        self.coverage = coverage

    def compute(self) -> Tensor:
        """The accuracy over all questions seen."""
        risk = risk_curve(*self.gathered())
        return 1 - risk[math.ceil(self.coverage * len(risk) - 1e-9) - 1]


class CoverageAtError(Selective):
    """Largest fraction of the questions, the most confident ones, whose answers are wrong at most so often.

    It is found on the labelled questions it is about, with hindsight: an upper limit to what a threshold that was fixed
    beforehand can reach, and no promise for others (see :mod:`bayeslora.decisions`).

    Args:
        error: Largest error rate, above 0 and below 1.
        kwargs: Those of ``torchmetrics.Metric``.
    """

    def __init__(self, error: float, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if not 0 < error < 1:
            raise ValueError(f"error is {error}; allowed: above 0, below 1")
        self.error = error

    def compute(self) -> Tensor:
        """The coverage over all questions seen; 0 where no number of answers is good enough."""
        confidence, correct = self.gathered()
        risk = risk_curve(confidence, correct)
        last = torch.cat([confidence.sort(descending=True).values.diff() != 0, torch.ones(1, dtype=torch.bool)])
        reached = ((risk <= self.error + 1e-12) & last.to(risk.device)).nonzero()  # ties are answered together
        return risk.new_tensor(0.0 if not len(reached) else (int(reached[-1]) + 1) / len(risk))
