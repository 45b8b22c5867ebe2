"""A Gaussian without correlations over some of the parameters: BLoB's family, and Bayes by Backprop's."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from bayeslora.errors import UsageError
from bayeslora.posteriors.on_device import OnDevice
from bayeslora.posteriors.state import check_same_parameters, parameters_of, state_of


def normal_kl(mean: Tensor, std: Tensor, prior_std: float) -> Tensor:
    r"""Kullback-Leibler divergence of N(mean, std^2) from N(0, prior_std^2), entry by entry.

    .. math:: \log \frac{\sigma_p}{\sigma} + \frac{\sigma^2 + \mu^2}{2 \sigma_p^2} - \frac12

    Args:
        mean: Any shape.
        std: Same shape, above 0.
        prior_std: Standard deviation of the prior.

    Returns:
        Same shape, in nats.
    """
    return math.log(prior_std) - std.log() + (std.square() + mean.square()) / (2 * prior_std**2) - 0.5


class MeanField(OnDevice):
    """Independent Gaussians over the parameters that have a standard deviation; the others are points.

    Args:
        mean: Parameter name to mean.
        std: Name to standard deviation, entry by entry, 0 or more, for some or all of the parameters.

    Raises:
        UsageError: a standard deviation of an unknown parameter, of another shape, or below 0.
    """

    family = "mean_field"

    def __init__(self, mean: Mapping[str, Tensor], std: Mapping[str, Tensor]) -> None:
        check_same_parameters(std, {name: mean[name] for name in std if name in mean}, "the standard deviations")
        self._mean = {name: tensor.detach().cpu().clone() for name, tensor in mean.items()}
        self._std = {name: std[name].detach().cpu().float() for name in self._mean if name in std}
        for name, value in self._std.items():
            if not (value >= 0).all():
                raise UsageError(f"a standard deviation of {name} is negative or no number; allowed: 0 or more")

    def mean(self) -> dict[str, Tensor]:
        """The mean of every parameter, name to ``[*shape]``."""
        return dict(self._mean)

    def std(self) -> dict[str, Tensor]:
        """The standard deviations of the parameters that have one, name to ``[*shape]``."""
        return dict(self._std)

    def sample(self, n: int, generator: torch.Generator) -> dict[str, Tensor]:
        """``n`` joint draws, name to ``[n, *shape]``; the first few do not depend on how many follow.

        Args:
            n: How many draws.
            generator: Source of the noise, on the CPU; the same state gives the same draws.
        """
        draws: dict[str, list[Tensor]] = {name: [] for name in self._std}
        for _ in range(n):
            for name, std in self._std.items():
                noise = std * torch.randn(std.shape, generator=generator, device="cpu")
                draws[name].append(self._mean[name] + noise.to(self._mean[name].dtype))
        points = {name: value.expand(n, *value.shape) for name, value in self._mean.items() if name not in draws}
        return {name: torch.stack(draws[name]) if name in draws else points[name] for name in self._mean}

    def log_prob(self, value: Mapping[str, Tensor]) -> Tensor:
        """Log-density over the parameters that have a spread, float64 scalar; minus infinity off the points.

        Args:
            value: Parameter name to value.

        Raises:
            UsageError: parameters of other names or shapes, or a standard deviation of 0, which has no density.
        """
        check_same_parameters(value, self._mean, "the value")
        total = torch.zeros((), dtype=torch.float64, device="cpu")
        for name, mean in self._mean.items():
            if name not in self._std:
                total -= 0.0 if torch.equal(value[name].cpu(), mean) else torch.inf
                continue
            std = self._std[name].double()
            if (std == 0).any():
                raise UsageError(f"{name} has a standard deviation of 0, so that there is no density")
            total += torch.distributions.Normal(mean.double(), std).log_prob(value[name].cpu().double()).sum()
        return total

    def kl(self, prior_std: float) -> Tensor:
        """Divergence from N(0, prior_std^2) over the parameters that have a spread, in nats, float64 scalar."""
        terms = [normal_kl(self._mean[n].double(), std.double(), prior_std).sum() for n, std in self._std.items()]
        return torch.stack(terms).sum() if terms else torch.zeros((), dtype=torch.float64, device="cpu")

    def logit_covariance(self, jacobian: Mapping[str, Tensor]) -> Tensor:
        """``J Sigma J^T [B, C-1, C-1]`` for the Jacobian of the contrast logits, name to ``[B, C-1, *shape]``."""
        like = next(iter(jacobian.values()))
        covariance = like.new_zeros(len(like), like.shape[1], like.shape[1])
        place = like.device, like.dtype
        for name, std in self.placed(place, lambda: {n: value.to(*place) for n, value in self._std.items()}).items():
            scaled = (jacobian[name] * std).flatten(2)
            covariance += scaled @ scaled.mT
        return covariance

    def state_dict(self) -> dict[str, Any]:
        """Means under ``mean/``, standard deviations under ``std/``, and the order they are drawn in."""
        return {**state_of("mean", self._mean), **state_of("std", self._std), "order": list(self._mean)}

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Any]) -> MeanField:
        """The posterior that ``state_dict`` described."""
        mean = parameters_of("mean", state)
        return cls({name: mean[name] for name in state["order"]}, parameters_of("std", state))
