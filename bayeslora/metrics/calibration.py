"""Calibration errors over bins of confidence."""

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from bayeslora.metrics import scores
from bayeslora.metrics.bins import bin_index, bin_sums, ece_floor
from bayeslora.metrics.ranking import cat_state
from bayeslora.metrics.selective import Selective, average_ties


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
        confidence, correct = scores.confidence(probs), scores.correct(probs, label)
        self.sums += bin_sums(confidence, correct, bin_index(confidence, self.n_bins), self.n_bins)

    def compute(self) -> Tensor:
        """The error over all questions seen."""
        count, confidence, correct = self.sums
        return (correct - confidence).abs().sum() / count.sum()


class MCE(ECE):
    r"""Maximum calibration error, :math:`\max_b |\mathrm{acc}_b - \mathrm{conf}_b|` over bins that are not empty."""

    def compute(self) -> Tensor:
        """The error over all questions seen."""
        count, confidence, correct = self.sums
        return ((correct - confidence).abs() / count.clamp(min=1)).amax()


class ClasswiseECE(Metric):
    r"""Mean over options of the calibration error of each option's probability (Nixon et al. 2019; Kull et al. 2019).

    .. math:: \frac1C \sum_c \sum_b \frac{n_{cb}}{N} |\mathrm{freq}_{cb} - \mathrm{conf}_{cb}|

    where bin (c, b) holds the questions whose p_c falls into b, and freq is how often c was the right option there. An
    option that a question does not have is neither predicted nor right, and adds nothing.

    Args:
        n_options: Number of options C, at least as many as any question has.
        n_bins: Number of right-closed equal-width bins.
        kwargs: Those of ``torchmetrics.Metric``.
    """

    full_state_update = False
    higher_is_better = False
    sums: Tensor

    def __init__(self, n_options: int, n_bins: int = 15, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.n_options, self.n_bins = n_options, n_bins
        self.add_state("sums", torch.zeros(3, n_options * n_bins, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, probs: Tensor, label: Tensor) -> None:
        """Add a batch of questions: probabilities ``[B, C]`` and labels ``[B]``."""
        option = torch.arange(probs.shape[1], device=probs.device).expand_as(probs)
        index = option * self.n_bins + bin_index(probs, self.n_bins)
        right = option == label[:, None]
        self.sums += bin_sums(probs.flatten(), right.flatten(), index.flatten(), self.n_options * self.n_bins)

    def compute(self) -> Tensor:
        """The error over all questions seen."""
        count, probability, right = self.sums
        questions = count[: self.n_bins].sum()  # every question has a first option
        return (right - probability).abs().sum() / questions / self.n_options


class AdaptiveECE(Selective):
    r"""Expected calibration error over bins of equally many questions (Nguyen & O'Connor 2015; Nixon et al. 2019).

    The questions are sorted by confidence and cut into bins whose sizes differ by at most one. Where a cut falls among
    equal confidences, their answers count with their mean accuracy on both sides of it.

    Args:
        n_bins: Number of bins; fewer questions than that have a bin each.
        kwargs: Those of ``torchmetrics.Metric``.
    """

    higher_is_better = False

    def __init__(self, n_bins: int = 15, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.n_bins = n_bins

    def compute(self) -> Tensor:
        """The error over all questions seen."""
        confidence, correct = self.gathered()
        gaps = average_ties(confidence, correct.double() - confidence)
        return torch.stack([part.sum().abs() for part in gaps.tensor_split(self.n_bins)]).sum() / len(gaps)


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
