"""Intervals of confidence: over the questions of a test set (bootstrap), over the seeds of a method (Student's t)."""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import cache

import torch
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
    """The t with P(|T| <= t) = ``level`` for Student's law with this many degrees of freedom, by bisection."""
    low, high = 0.0, 1.0
    while _student(high, degrees) < level:
        high *= 2
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if _student(middle, degrees) < level else (low, middle)
    return high


def _student(t: float, degrees: int) -> float:
    """P(|T| <= t): the finite sums of Abramowitz & Stegun 26.7.3 (odd) and 26.7.4 (even)."""
    angle = math.atan2(t, math.sqrt(degrees))
    sine, cosine = math.sin(angle), math.cos(angle)
    odd = degrees % 2
    term = total = cosine if odd else 1.0
    for k in range(2 + odd, degrees, 2):
        term *= cosine**2 * (k - 1) / k
        total += term
    if not odd:
        return sine * total
    return 2 / math.pi * (angle + (sine * total if degrees > 1 else 0.0))
