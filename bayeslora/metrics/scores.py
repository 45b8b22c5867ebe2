"""Numbers per question, from probabilities and what was right: the terms that every mean and every ranking is made of.

Probabilities are ``[N, C]`` with zeros at absent options, labels ``[N]``. An option that a method rules out entirely
has probability zero in a file of doubles; logarithms are taken at the smallest positive double instead, so that its
loss is about 708 nats and not infinite.
"""

import torch
from torch import Tensor

_TINY = torch.finfo(torch.float64).tiny


def confidence(probs: Tensor) -> Tensor:
    """Probability of the option that is chosen ``[N]``."""
    return probs.amax(-1)


def correct(probs: Tensor, label: Tensor) -> Tensor:
    """Whether the most probable option is the right one, bool ``[N]``; of equal options the first is chosen.

    Args:
        probs: Probabilities of the options ``[N, C]``; 0 where there is no such option.
        label: Index of the right option ``[N]``.
    """
    return probs.argmax(-1) == label


def nll(probs: Tensor, label: Tensor) -> Tensor:
    r"""Negative log-likelihood :math:`-\log p_y` ``[N]`` in nats.

    Args:
        probs: Probabilities of the options ``[N, C]``; 0 where there is no such option.
        label: Index of the right option ``[N]``.
    """
    return -_log(_at(probs, label))


def brier(probs: Tensor, label: Tensor) -> Tensor:
    r"""Brier score over all options, :math:`\sum_c (p_c - 1[c = y])^2` ``[N]``, between 0 and 2 (Brier 1950).

    Args:
        probs: Probabilities of the options ``[N, C]``; 0 where there is no such option.
        label: Index of the right option ``[N]``.
    """
    return probs.square().sum(-1) - 2 * _at(probs, label) + 1


def expected_accuracy(probs: Tensor, true_probs: Tensor) -> Tensor:
    r"""Chance that the chosen option is right, :math:`p^*(\arg\max p)` ``[N]``.

    Args:
        probs: Probabilities of the options ``[N, C]``; 0 where there is no such option.
        true_probs: The known true probabilities of the options ``[N, C]``.
    """
    return _at(true_probs, probs.argmax(-1))


def expected_nll(probs: Tensor, true_probs: Tensor) -> Tensor:
    r"""Expected negative log-likelihood :math:`-\sum_c p^*_c \log p_c` ``[N]`` in nats.

    Args:
        probs: Probabilities of the options ``[N, C]``; 0 where there is no such option.
        true_probs: The known true probabilities of the options ``[N, C]``.
    """
    return -(true_probs * _log(probs)).sum(-1)


def expected_brier(probs: Tensor, true_probs: Tensor) -> Tensor:
    r"""Expected Brier score :math:`\sum_c (p_c - p^*_c)^2 + 1 - \sum_c p^{*2}_c` ``[N]``.

    Args:
        probs: Probabilities of the options ``[N, C]``; 0 where there is no such option.
        true_probs: The known true probabilities of the options ``[N, C]``.
    """
    return (probs - true_probs).square().sum(-1) + 1 - true_probs.square().sum(-1)


def expected_calibration_gap(probs: Tensor, true_probs: Tensor) -> Tensor:
    r"""Distance of the confidence from the chance of being right, :math:`|\max p - p^*(\arg\max p)|` ``[N]``.

    Args:
        probs: Probabilities of the options ``[N, C]``; 0 where there is no such option.
        true_probs: The known true probabilities of the options ``[N, C]``.
    """
    return (confidence(probs) - expected_accuracy(probs, true_probs)).abs()


def divergence(probs: Tensor, true_probs: Tensor) -> Tensor:
    r""":math:`KL(p^* \| p) = \sum_c p^*_c \log(p^*_c / p_c)` ``[N]`` in nats.

    Args:
        probs: Probabilities of the options ``[N, C]``; 0 where there is no such option.
        true_probs: The known true probabilities of the options ``[N, C]``.
    """
    return (true_probs * (_log(true_probs) - _log(probs))).sum(-1)


def outside_mass(logits: Tensor, logsumexp: Tensor) -> Tensor:
    r"""Probability outside the options, :math:`1 - \sum_c e^{f_c - \mathrm{lse}}` ``[...]``.

    Args:
        logits: Answer logits ``[..., C]``, minus infinity at absent options.
        logsumexp: Log-sum-exp over the whole vocabulary ``[...]``.
    """
    return -torch.expm1((logits.double().logsumexp(-1) - logsumexp.double()).clamp(max=0))


def _at(probs: Tensor, index: Tensor) -> Tensor:
    return probs.gather(-1, index[:, None]).squeeze(-1)


def _log(probs: Tensor) -> Tensor:
    return probs.double().clamp(min=_TINY).log()
