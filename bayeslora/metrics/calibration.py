"""Calibration errors of the chosen option, over bins of confidence."""

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from bayeslora.metrics import scores
from bayeslora.metrics.bins import bin_index, bin_sums, ece_floor
from bayeslora.metrics.ranking import cat_state


class ECE(Metric):
    r"""Expected calibration error over right-closed equal-width bins (Naeini et al. 2015; Guo et al. 2017).

    .. math:: \mathrm{ECE} = \sum_b \frac{n_b}{N} |\mathrm{acc}_b - \mathrm{conf}_b|

    Args:
        n_bins: Number of bins.
        kwargs: Those of ``torchmetrics.Metric``.
    """

    full_state_update = False
    higher_is_better = False
    sums: Tensor

    def __init__(self, n_bins: int = 15, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.n_bins = n_bins
        self.add_state("sums", torch.zeros(3, n_bins, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, probs: Tensor, label: Tensor) -> None:
        """Add a batch of questions: probabilities ``[B, C]`` and labels ``[B]``."""
        confidence = scores.confidence(probs)
        self.sums += bin_sums(confidence, scores.correct(probs, label), bin_index(confidence, self.n_bins), self.n_bins)

    def compute(self) -> Tensor:
        """The error over all questions seen."""
        count, confidence, correct = self.sums
        return (correct - confidence).abs().sum() / count.sum()


class ECEFloor(Metric):
    """ECE expected of a perfectly calibrated predictor with the same confidences, see :func:`ece_floor`.

    Args:
        n_bins: Number of bins, that of the ECE it stands beside.
        kwargs: Those of ``torchmetrics.Metric``.
    """

    full_state_update = False
    confidences: list[Tensor]

    def __init__(self, n_bins: int = 15, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.n_bins = n_bins
        self.add_state("confidences", [], dist_reduce_fx="cat")
        self.set_dtype(torch.float64)  # also the dtype in which a rank without data takes part in gathering

    def update(self, probs: Tensor) -> None:
        """Add a batch of probabilities ``[B, C]``."""
        self.confidences.append(scores.confidence(probs).double())

    def compute(self) -> Tensor:
        """The floor for all questions seen."""
        return ece_floor(cat_state(self.confidences), self.n_bins)
