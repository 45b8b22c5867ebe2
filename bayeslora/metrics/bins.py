"""Bins of confidence, and what a perfectly calibrated predictor shows in them."""

from dataclasses import dataclass

import torch
from torch import Tensor

_CELLS = 1 << 22  # complex numbers at a time in the discrete Fourier transform: 64 MiB


def bin_index(confidence: Tensor, n_bins: int) -> Tensor:
    """Number of the right-closed equal-width bin ``(k/n, (k+1)/n]`` of each confidence; zero belongs to the first.

    The edges are compared in the dtype of the confidence, so that k/n itself always falls into the bin it closes, and 1
    into the last bin (torchmetrics 1.9 opens one bin more for it, its issue 3510).

    Args:
        confidence: Confidences between 0 and 1 ``[N]``.
        n_bins: Number of bins.
    """
    inner = (torch.arange(1, n_bins, dtype=torch.float64, device=confidence.device) / n_bins).to(confidence.dtype)
    return torch.bucketize(confidence.contiguous(), inner)


def bin_sums(confidence: Tensor, correct: Tensor, index: Tensor, n_bins: int) -> Tensor:
    """Count, summed confidence and summed correctness of each bin, float64 ``[3, n_bins]``.

    Args:
        confidence: Confidences between 0 and 1 ``[N]``.
        correct: Whether each answer is right ``[N]``.
        index: The bin of each answer ``[N]``, from :func:`bin_index`.
        n_bins: Number of bins.
    """
    columns = torch.stack([torch.ones_like(confidence), confidence, correct.to(confidence.dtype)]).double()
    zeros = torch.zeros(3, n_bins, dtype=torch.float64, device=confidence.device)
    return zeros.index_add_(1, index, columns)


@dataclass(frozen=True)
class CorrectCount:
    r"""Law of the number of right answers in a bin whose confidences are all true.

    The count K is a sum of independent Bernoulli variables, one per question, with the confidences as chances: a
    Poisson-binomial variable with mean :math:`m = \sum_i p_i`.

    Attributes:
        values: Integers around m outside which K has no mass worth a double ``[L]``.
        pmf: Their probabilities, float64 ``[L]``.
        mean: m, a scalar.
    """

    values: Tensor
    pmf: Tensor
    mean: Tensor

    @classmethod
    def of(cls, confidence: Tensor) -> "CorrectCount":
        r"""The law for these confidences ``[n]``, exact to about 1e-12.

        The discrete Fourier transform of the characteristic function :math:`\prod_i (1 - p_i + p_i e^{i t})` at L
        equally spaced t gives the probabilities modulo L. By Bernstein's inequality less than 1e-15 lies further than
        :math:`12\sigma + 30` from the mean, so L need not be n + 1.
        """
        p = confidence.double()
        mean, deviation = p.sum(), (p * (1 - p)).sum().clamp(min=0).sqrt()
        reach = 12 * float(deviation) + 30
        low, high = max(0, int(mean - reach)), min(len(p), int(mean + reach) + 1)
        length = high - low + 1
        angle = 2 * torch.pi * torch.arange(length // 2 + 1, dtype=torch.float64, device=p.device) / length
        turn = torch.polar(torch.ones_like(angle), angle)
        spectrum = torch.polar(torch.ones_like(angle), -low * angle)
        for part in p.split(max(1, _CELLS // len(angle))):
            spectrum = spectrum * (1 + part[:, None] * (turn - 1)).prod(0)
        pmf = torch.fft.irfft(spectrum.conj(), n=length).clamp(min=0)
        return cls(torch.arange(low, high + 1, device=p.device), pmf / pmf.sum(), mean)

    @property
    def mean_deviation(self) -> Tensor:
        """Expected distance of the count from its mean, E|K - m|."""
        return (self.pmf * (self.values - self.mean).abs()).sum()

    def interval(self, level: float) -> tuple[int, int]:
        """Counts between which K lies with at least this probability, the tails cut evenly."""
        cumulative = self.pmf.cumsum(0)
        tail = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64, device=self.pmf.device)
        low, high = torch.searchsorted(cumulative, tail).clamp(max=len(cumulative) - 1).tolist()
        return int(self.values[low]), int(self.values[high])


def ece_floor(confidence: Tensor, n_bins: int) -> Tensor:
    r"""ECE that a perfectly calibrated predictor with these confidences ``[N]`` is expected to show.

    With finitely many questions no ECE is zero. If every confidence is the chance of being right, the number of right
    answers in bin b is Poisson-binomial and

    .. math:: E[\mathrm{ECE}] = \frac1N \sum_b E|K_b - E K_b|,

    which is computed exactly, see :class:`CorrectCount`.

    Args:
        confidence: Confidences of the predictor.
        n_bins: Number of right-closed equal-width bins.
    """
    index = bin_index(confidence, n_bins)
    deviations = [CorrectCount.of(confidence[index == b]).mean_deviation for b in index.unique()]
    return torch.stack(deviations).sum() / len(confidence)
