"""Metrics that are means over questions: exact in any order, in any batches, on any number of ranks."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from bayeslora.metrics import scores


class _Mean(Metric):
    """A sum in float64 and a count.

    torchmetrics' ``MeanMetric`` sums in float32 and, given a mean per batch, weighs a short last batch like a full one.
    """

    full_state_update = False
    total: Tensor
    count: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("total", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def _add(self, values: Tensor) -> None:
        self.total += values.double().sum()
        self.count += values.numel()

    def compute(self) -> Tensor:
        """The mean over all questions seen."""
        return self.total / self.count


class Mean(_Mean):
    """Mean of a number per question."""

    def update(self, values: Tensor) -> None:
        """Add the values ``[B]`` of a batch of questions."""
        self._add(values)


class _MeanScore(_Mean):
    """Mean of a score of the probabilities ``[B, C]`` against what was right."""

    score: Callable[[Tensor, Tensor], Tensor]

    def update(self, probs: Tensor, target: Tensor) -> None:
        """Add a batch of questions: probabilities ``[B, C]`` and labels ``[B]`` or true probabilities ``[B, C]``."""
        self._add(type(self).score(probs, target))


class Accuracy(_MeanScore):
    """Fraction of questions whose most probable option is right."""

    higher_is_better = True
    score = staticmethod(scores.correct)


class NLL(_MeanScore):
    """Mean negative log-likelihood of the labels, see :func:`scores.nll`."""

    higher_is_better = False
    score = staticmethod(scores.nll)


class Brier(_MeanScore):
    """Mean Brier score over all options, between 0 and 2, see :func:`scores.brier`."""

    higher_is_better = False
    score = staticmethod(scores.brier)


class ExpectedAccuracy(_MeanScore):
    """Accuracy expected under the true probabilities, which takes label noise out."""

    higher_is_better = True
    score = staticmethod(scores.expected_accuracy)


class ExpectedNLL(_MeanScore):
    """Negative log-likelihood expected under the true probabilities."""

    higher_is_better = False
    score = staticmethod(scores.expected_nll)


class ExpectedBrier(_MeanScore):
    """Brier score expected under the true probabilities."""

    higher_is_better = False
    score = staticmethod(scores.expected_brier)


class ExpectedCalibrationGap(_MeanScore):
    """Mean distance of the confidence from the chance of being right, question by question and without bins."""

    higher_is_better = False
    score = staticmethod(scores.expected_calibration_gap)


class Divergence(_MeanScore):
    """Mean Kullback-Leibler divergence of the prediction from the true probabilities."""

    higher_is_better = False
    score = staticmethod(scores.divergence)
