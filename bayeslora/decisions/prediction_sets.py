r"""Prediction sets: the options that hold the right one with a probability of at least 1 - alpha (split conformal).

Three scores of an option say how far it is from being the answer; the set holds the options whose score is at most the
:math:`\lceil (n+1)(1-\alpha) \rceil`-th smallest score of the right option among n calibration questions.

- LAC (Sadinle, Lei & Wasserman 2019, arXiv 1609.00451): :math:`1 - p_c`. The smallest sets on average.
- APS (Romano, Sesia & Candes 2020, arXiv 2006.02544): :math:`\sum_{j: p_j \ge p_c} p_j - u\,p_c`, with options in the
  order of their probability. Sets grow with how hard a question is.
- RAPS (Angelopoulos et al. 2021, arXiv 2009.14193): APS plus
  :math:`\lambda\,(\mathrm{rank}_c - k)_+`, against long tails.

The u of a question is uniform and a function of its key: a set is the same alone, in any batch, and at any place in it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from bayeslora.streams import stream

METHODS = ("lac", "aps", "raps")
_PENALTIES = (0.001, 0.01, 0.1, 0.2, 0.5)  # among which RAPS chooses, those of its authors' code and of MAPIE


@dataclass(frozen=True)
class SetRule:
    """What a prediction set is made by.

    Attributes:
        method: ``lac``, ``aps`` or ``raps``.
        alpha: Probability with which the right option may be missing.
        threshold: Largest score of an option in the set; infinite where the questions are too few for ``alpha``.
        questions: Number of calibration questions.
        penalty: RAPS's lambda.
        free: RAPS's k: how many options are not penalised.
    """

    method: str
    alpha: float
    threshold: float
    questions: int
    penalty: float = 0.0
    free: int = 0

    def sets(self, probs: Tensor, options: Tensor, noise: Tensor) -> Tensor:
        """The options in each question's set, bool ``[N, C]``; it may be empty, see :func:`with_top`.

        Args:
            probs: Probabilities ``[N, C]``, absent options last.
            options: Numbers of options ``[N]``.
            noise: What :func:`uniform_noise` gives for the questions ``[N]``.
        """
        present = torch.arange(probs.shape[1]) < options[:, None]
        return (option_scores(probs, noise, self.method, self.penalty, self.free) <= self.threshold) & present


def option_scores(probs: Tensor, noise: Tensor, method: str, penalty: float = 0.0, free: int = 0) -> Tensor:
    """Score of every option, float64 ``[N, C]``: smaller where it is closer to being the answer.

    Args:
        probs: Probabilities ``[N, C]``; of equal options the first comes first.
        noise: A uniform number for each question ``[N]``; LAC does not use it.
        method: ``lac``, ``aps`` or ``raps``.
        penalty: RAPS's lambda.
        free: RAPS's k.
    """
    probs = probs.double()
    if method == "lac":
        return 1 - probs
    order = probs.argsort(dim=-1, descending=True, stable=True)
    rank = order.argsort(dim=-1)
    summed = probs.gather(-1, order).cumsum(-1).gather(-1, rank)
    score = summed - noise.double()[:, None] * probs
    return score if method == "aps" else score + penalty * (rank + 1 - free).clamp(min=0)


def conformal_quantile(scores: Tensor, alpha: float) -> float:
    r"""The :math:`\lceil (n+1)(1-\alpha) \rceil`-th smallest of n scores; infinite where there are fewer than that.

    Args:
        scores: Nonconformity scores of n calibration questions.
        alpha: How often a set may miss the right option.

    >>> conformal_quantile(torch.arange(1.0, 100.0), 0.1)
    90.0
    """
    place = max(1, math.ceil(round((len(scores) + 1) * (1 - alpha), 9)))
    return math.inf if place > len(scores) else float(scores.double().sort().values[place - 1])


def fit_sets(
    method: str, probs: Tensor, label: Tensor, noise: Tensor, alpha: float, penalty: float = 0.0, free: int = 0
) -> SetRule:
    """The rule whose sets miss the right option with probability ``alpha`` at most.

    Args:
        method: ``lac``, ``aps`` or ``raps``.
        probs: Probabilities of the calibration questions ``[N, C]``.
        label: Their right options ``[N]``.
        noise: A uniform number for each ``[N]``.
        alpha: Probability with which the right option may be missing.
        penalty: RAPS's lambda.
        free: RAPS's k.
    """
    scores = option_scores(probs, noise, method, penalty, free).gather(-1, label[:, None]).squeeze(-1)
    return SetRule(method, alpha, conformal_quantile(scores, alpha), len(label), penalty, free)


def choose_penalty(probs: Tensor, label: Tensor, options: Tensor, noise: Tensor, alpha: float) -> tuple[float, int]:
    """RAPS's lambda and k, from questions that are not the calibration's.

    k is the rank within which the right option lies with probability 1 - ``alpha``; lambda the one of five that gives
    the smallest sets on these questions.

    Args:
        probs: Probabilities of the options ``[N, C]``; 0 where there is no such option.
        label: Index of the right option ``[N]``.
        options: Number of options of each question ``[N]``.
        noise: Uniform noise in [0, 1) of each question ``[N]``.
        alpha: How often a set may miss the right option.

    Returns:
        Lambda and k.
    """
    order = probs.double().argsort(dim=-1, descending=True, stable=True)
    ranks = (order == label[:, None]).double().argmax(-1).double() + 1
    free = int(min(conformal_quantile(ranks, alpha), float(options.max())))
    sizes = {
        penalty: fit_sets("raps", probs, label, noise, alpha, penalty, free).sets(probs, options, noise).sum()
        for penalty in _PENALTIES
    }
    return min(sizes, key=lambda penalty: int(sizes[penalty])), free


def with_top(sets: Tensor, probs: Tensor) -> Tensor:
    """The sets, with the most probable option put into those that are empty; coverage only grows by that.

    Args:
        sets: Which options each set holds, bool ``[N, C]``.
        probs: Probabilities of the options ``[N, C]``; 0 where there is no such option.
    """
    top = torch.nn.functional.one_hot(probs.argmax(-1), probs.shape[1]).bool()
    return sets | (top & ~sets.any(-1, keepdim=True))


def uniform_noise(keys: Iterable[int | str]) -> Tensor:
    """A number in [0, 1) for every question, float64 ``[N]``, that depends on its key alone.

    Args:
        keys: What tells each question from others, such as ``Question.key``.
    """
    return torch.tensor([(stream("prediction set", key) >> 10) / 2**53 for key in keys], dtype=torch.float64)
