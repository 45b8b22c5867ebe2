"""Intervals of confidence: over questions (bootstrap; exact for proportions), over seeds (Student's t)."""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import cache

import torch
from scipy.special import betaincinv, stdtrit
from torch import Tensor

LEVEL = 0.95
_CELLS = 1 << 22  # question counts at a time: 32 MiB


def bootstrap(
    statistics: Mapping[str, Callable[[Tensor], Tensor]], groups: Sequence[int], resamples: int = 1000, seed: int = 0
) -> dict[str, tuple[float, float]]:
    r"""Basic bootstrap intervals of statistics of questions (Davison & Hinkley 1997, section 5.2).

    With q the quantiles of the replicates, the interval is :math:`[2\hat\theta - q_{1-\alpha/2}, 2\hat\theta -
    q_{\alpha/2}]`. Resampling shifts an ECE upwards, by as much as it is shifted itself from the truth; the reflection
    takes that out, while the interval between the quantiles themselves may lie wholly above the estimate. (Of 600
    questions in 15 bins and a true ECE of 0.05, the reflected interval holds it in 88 % of runs, the other in 12 %.) Of
    an ECE that is down at its floor no bootstrap gives a reliable interval.

    Args:
        statistics: Name to a function from how often each question counts ``[R, N]`` to the statistic of each
            resample ``[R]``. All are taken of the same resamples.
        groups: Sizes of the groups that are resampled separately; they sum to N.
        resamples: Number of resamples.
        seed: Of the resamples; the global generator is left alone.

    Returns:
        Name to lower and upper end of the 95 % interval.
    """
    generator = torch.Generator().manual_seed(seed)
    rows = max(1, _CELLS // sum(groups))
    sizes = [min(rows, resamples - start) for start in range(0, resamples, rows)]
    tails = torch.tensor([(1 + LEVEL) / 2, (1 - LEVEL) / 2], dtype=torch.float64)
    once = torch.ones(1, sum(groups), dtype=torch.float64)
    replicates: dict[str, list[Tensor]] = {name: [] for name in statistics}
    for size in sizes:
        counts = _counts(size, groups, generator)
        for name, statistic in statistics.items():
            replicates[name].append(statistic(counts))
    ends = {name: 2 * statistics[name](once) - torch.cat(parts).quantile(tails) for name, parts in replicates.items()}
    return {name: (float(low), float(high)) for name, (low, high) in ends.items()}


def _counts(resamples: int, groups: Sequence[int], generator: torch.Generator) -> Tensor:
    """How often each question is drawn, float64 ``[resamples, N]``."""
    parts = []
    for size in groups:
        drawn = torch.randint(size, (resamples, size), generator=generator)
        once = torch.ones_like(drawn, dtype=torch.float64)
        parts.append(torch.zeros_like(once).scatter_add_(1, drawn, once))
    return torch.cat(parts, dim=1)


def over_seeds(values: Sequence[float]) -> tuple[float, float | None]:
    r"""Mean over seeds and half the width of its 95 % interval, :math:`t_{n-1} s / \sqrt n`; None for a single seed."""
    n = len(values)
    mean = math.fsum(values) / n
    if n == 1:
        return mean, None
    deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (n - 1))
    return mean, student_quantile(n - 1) * deviation / math.sqrt(n)


@cache
def student_quantile(degrees: int, level: float = LEVEL) -> float:
    """The t with P(abs(T) <= t) = ``level`` for Student's law with this many degrees of freedom.

    Args:
        degrees: Degrees of freedom, one less than the number of values.
        level: Probability within the interval.
    """
    return float(stdtrit(degrees, (1 + level) / 2))


def clopper_pearson(count: int, total: int, level: float = LEVEL) -> tuple[float, float]:
    r"""Exact interval of a proportion, of which ``count`` of ``total`` were seen (Clopper & Pearson 1934).

    It holds the true proportion with at least this probability, for any number of questions; of 0 in 6 it says 0 to
    0.46, where a bootstrap or a normal interval would say 0 to 0. Its ends are the quantiles

    .. math:: B^{-1}(\tfrac{1 - \gamma}{2};\, k, n - k + 1) \quad\text{and}\quad
        B^{-1}(\tfrac{1 + \gamma}{2};\, k + 1, n - k)

    of beta laws, 0 for k = 0 and 1 for k = n.

    Args:
        count: Number k of questions with the property, 0 to n.
        total: Number n of questions.
        level: Confidence :math:`\gamma`.

    Returns:
        Lower and upper end; 0 and 1 where there is no question.

    >>> [round(end, 3) for end in clopper_pearson(0, 6)]
    [0.0, 0.459]
    """
    low = 0.0 if count == 0 else float(betaincinv(count, total - count + 1, (1 - level) / 2))
    high = 1.0 if count == total else float(betaincinv(count + 1, total - count, (1 + level) / 2))
    return low, high
