r"""ScalaBL's posterior (Samplawski et al., 2025): a Gaussian over r numbers that scale the rows of every LoRA A.

The update of a weight is :math:`B\,\mathrm{diag}(s)\,V` with :math:`s \sim N(\mu, \mathrm{diag}(\sigma^2))` of
dimension r. Kept is the mean :math:`A = \mathrm{diag}(\mu) V`, a plain LoRA factor; a draw of it is
:math:`\mathrm{diag}(s / \mu) A = \mathrm{diag}(1 + \frac{\sigma}{\mu} \epsilon) A`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from bayeslora.errors import UsageError
from bayeslora.posteriors.mean_field import normal_kl
from bayeslora.posteriors.state import parameters_of, state_of


class ScalaBLPosterior:
    r"""Independent Gaussians over the scales s of the rows of every A; every other parameter is a point.

    Args:
        mean: Parameter name to value, of every A its mean :math:`\mathrm{diag}(\mu) V` ``[r, in]``.
        scale_mean: Name of every A to :math:`\mu` ``[r]``, above 0.
        scale_std: Name of every A to :math:`\sigma` ``[r]``, 0 or more.

    Raises:
        UsageError: scales of a parameter that is not there, of another length than it has rows, or out of range.
    """

    family = "scalabl"

    def __init__(
        self, mean: Mapping[str, Tensor], scale_mean: Mapping[str, Tensor], scale_std: Mapping[str, Tensor]
    ) -> None:
        self._mean = {name: value.detach().cpu().clone() for name, value in mean.items()}
        self._scale_mean, self._scale_std = (
            {name: value.detach().cpu().float() for name, value in scales.items()} for scales in (scale_mean, scale_std)
        )
        if self._scale_mean.keys() != self._scale_std.keys():
            raise UsageError("the means of ScalaBL's scales and their standard deviations belong to other parameters")
        for name, own in self._scale_mean.items():
            rows = self._mean[name].shape[:1] if name in self._mean else None
            if own.shape != rows or self._scale_std[name].shape != rows:
                raise UsageError(f"ScalaBL's scales of {name} are {list(own.shape)}; allowed: one a row of a parameter")
            if not ((own > 0).all() and (self._scale_std[name] >= 0).all()):
                raise UsageError(f"ScalaBL's scales of {name}: allowed are means above 0, standard deviations from 0")

    def mean(self) -> dict[str, Tensor]:
        """A plain LoRA adapter, name to ``[*shape]``."""
        return dict(self._mean)

    def scale_mean(self) -> dict[str, Tensor]:
        r"""Means :math:`\mu` of the scales by the name of their A, ``[r]``."""
        return dict(self._scale_mean)

    def scale_std(self) -> dict[str, Tensor]:
        r"""Standard deviations :math:`\sigma` of the scales by the name of their A, ``[r]``."""
        return dict(self._scale_std)

    def sample(self, n: int, generator: torch.Generator) -> dict[str, Tensor]:
        """``n`` joint draws, name to ``[n, *shape]``; the first few do not depend on how many follow.

        Args:
            n: How many draws.
            generator: Source of the noise, on the CPU; the same state gives the same draws.
        """
        draws: dict[str, list[Tensor]] = {name: [] for name in self._scale_mean}
        for _ in range(n):
            for name, spread in self._relative().items():
                noise = torch.randn(spread.shape, generator=generator, device="cpu")
                draws[name].append(scaled_rows(self._mean[name], spread * noise))
        points = {name: value.expand(n, *value.shape) for name, value in self._mean.items() if name not in draws}
        return {name: torch.stack(draws[name]) if name in draws else points[name] for name in self._mean}

    def kl(self, prior_std: float) -> Tensor:
        """Divergence of the scales' law from N(0, prior_std^2), in nats, float64 scalar."""
        scales = [(self._scale_mean[name].double(), std.double()) for name, std in self._scale_std.items()]
        return torch.stack([normal_kl(mean, std, prior_std).sum() for mean, std in scales]).sum()

    def logit_covariance(self, jacobian: Mapping[str, Tensor]) -> Tensor:
        r"""``J Sigma J^T [B, C-1, C-1]`` for the Jacobian of the contrast logits, name to ``[B, C-1, *shape]``.

        What a row's scale does is the row's own direction: :math:`J_s = \mathrm{rowsum}(J_A \circ A) / \mu`.
        """
        like = next(iter(jacobian.values()))
        covariance = like.new_zeros(len(like), like.shape[1], like.shape[1])
        for name, spread in self._relative().items():
            along = (jacobian[name] * self._mean[name].to(like.device, like.dtype)).sum(-1)
            scaled = along * spread.to(like.device, like.dtype)
            covariance += scaled @ scaled.mT
        return covariance

    def _relative(self) -> dict[str, Tensor]:
        return {name: std / self._scale_mean[name] for name, std in self._scale_std.items()}

    def state_dict(self) -> dict[str, Any]:
        """The adapter under ``mean/``, the scales' law under ``scale_mean/`` and ``scale_std/``, and the order."""
        kinds = {"mean": self._mean, "scale_mean": self._scale_mean, "scale_std": self._scale_std}
        tensors = {key: value for kind, values in kinds.items() for key, value in state_of(kind, values).items()}
        return {**tensors, "order": list(self._mean), "scaled": list(self._scale_mean)}

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Any]) -> ScalaBLPosterior:
        """The posterior that ``state_dict`` described."""
        mean, means, stds = (parameters_of(kind, state) for kind in ("mean", "scale_mean", "scale_std"))
        order = {name: mean[name] for name in state["order"]}
        return cls(order, {name: means[name] for name in state["scaled"]}, {n: stds[n] for n in state["scaled"]})


def scaled_rows(mean: Tensor, deviation: Tensor) -> Tensor:
    r"""One draw of A from its mean ``[r, in]``: :math:`\mathrm{diag}(1 + d) A` of relative deviations d ``[r]``.

    Args:
        mean: The mean of A ``[r, in]``.
        deviation: Relative deviations d of its rows ``[r]``.
    """
    return mean + (deviation[:, None] * mean).to(mean.dtype)
