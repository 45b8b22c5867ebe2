"""A mixture of posteriors: ensembles of points, MultiSWAG, Laplace ensembles."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from bayeslora.errors import UsageError
from bayeslora.posteriors.state import check_same_parameters
from bayeslora.types import Posterior


class Mixture:
    r"""Equal parts of M posteriors: :math:`q(\theta) = \frac{1}{M} \sum_m q_m(\theta)`.

    Args:
        components: The M posteriors, over the same parameters.

    Raises:
        UsageError: no components, or components over other parameters.
    """

    family = "mixture"

    def __init__(self, components: Sequence[Posterior]) -> None:
        if not components:
            raise UsageError("a mixture has no components; allowed: one or more")
        first = components[0].mean()
        for index, component in enumerate(components[1:], start=1):
            check_same_parameters(component.mean(), first, f"component {index}")
        self.components = list(components)

    def mean(self) -> dict[str, Tensor]:
        """The mean of the components' means. A and B are averaged apart, so this is no sensible network."""
        means = [component.mean() for component in self.components]
        return {name: torch.stack([mean[name] for mean in means]).mean(0) for name in means[0]}

    def sample(self, n: int, generator: torch.Generator) -> dict[str, Tensor]:
        """``n`` draws, as evenly over the components as n allows and in their order, name to ``[n, *shape]``.

        With n a multiple of M, draws ``m * n / M`` onwards are component m's: S samples of M members are M * S samples
        labelled (m, s).

        Args:
            n: How many draws.
            generator: Source of the noise, on the CPU; the same state gives the same draws.
        """
        per, rest = divmod(n, len(self.components))
        counts = [per + (index < rest) for index in range(len(self.components))]
        draws = [c.sample(count, generator) for c, count in zip(self.components, counts, strict=True) if count]
        return {name: torch.cat([draw[name] for draw in draws]) for name in draws[0]}

    def state_dict(self) -> dict[str, Any]:
        """Nothing of its own: the components keep their states."""
        return {}

    @classmethod
    def from_components(cls, components: Sequence[Posterior], state: Mapping[str, Any]) -> Mixture:
        """The mixture of components that were read back.

        Args:
            components: The M components.
            state: The mixture's own state, as plain values.
        """
        return cls(components)


def even_share(posterior: Posterior) -> int:
    """The least number of draws of which every part of a posterior gets as many as its weight says.

    It is 1, or for a mixture of M components M times the least common multiple of theirs.

    Args:
        posterior: Any posterior; a mixture's components may be mixtures.

    Example:
        >>> import torch
        >>> from bayeslora.posteriors.point import Point
        >>> point = Point({"w": torch.zeros(2)})
        >>> even_share(Mixture([Mixture([point] * 3), Mixture([point] * 2)]))
        12
    """
    if not isinstance(posterior, Mixture):
        return 1
    return len(posterior.components) * math.lcm(*map(even_share, posterior.components))
