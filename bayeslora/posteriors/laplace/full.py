"""Laplace's Gaussian with the full Gauss-Newton matrix, by the directions in which it differs from the prior."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from bayeslora.errors import UsageError
from bayeslora.posteriors.state import check_same_parameters, parameters_of, state_of


class FullPosterior:
    r"""A Gaussian whose covariance is the prior's, less what the data determine along k directions.

    With the prior's precisions :math:`\Lambda`, orthonormal rows V ``[k, P]`` and curvatures s of the whitened
    Gauss-Newton matrix :math:`\Lambda^{-1/2} G \Lambda^{-1/2} = V^T \mathrm{diag}(s) V`,

    .. math:: \Sigma = c\, \Lambda^{-1/2} \left( I - V^T \mathrm{diag}\left(\frac{s}{1 + s}\right) V \right)
        \Lambda^{-1/2}.

    With all directions this is :math:`c\,(G + \Lambda)^{-1}`. Without those of the smallest curvatures, a variance is
    too large by at most :math:`s_{k+1} / (1 + s_{k+1})` of the prior's. The rows kept are :math:`D = V \Lambda^{-1/2}`,
    so that the training Jacobians are not needed any more.

    Args:
        mean: Parameter name to value.
        directions: D by parameter, name to ``[k, *shape]``; a parameter without them is known for certain.
        curvature: s ``[k]``, not negative.
        precision: Parameter name to the prior's precision, above 0.
        scale: Factor c on the covariance.

    Raises:
        UsageError: directions of unknown parameters or other shapes, or a precision that is missing or not above 0.
    """

    family = "laplace_full"

    def __init__(
        self,
        mean: Mapping[str, Tensor],
        directions: Mapping[str, Tensor],
        curvature: Tensor,
        precision: Mapping[str, float],
        scale: float = 1.0,
    ) -> None:
        self._mean = {name: value.detach().cpu() for name, value in mean.items()}
        known = {name: value[None].expand(len(curvature), *value.shape) for name, value in self._mean.items()}
        check_same_parameters(directions, {n: known[n] for n in directions if n in known}, "the directions")
        for name in directions:
            if not precision.get(name, 0.0) > 0:
                raise UsageError(f"{name} needs a prior precision above 0; given {precision.get(name)}")
        self.directions, self.curvature = dict(directions), curvature.detach().double().cpu()
        self.precision = {name: float(precision[name]) for name in directions}
        self.scale = scale
        self._placed: tuple[tuple[torch.device, torch.dtype], dict[str, Tensor]] | None = None

    def mean(self) -> dict[str, Tensor]:
        """The weights the Gaussian is around, name to ``[*shape]``."""
        return dict(self._mean)

    def sample(self, n: int, generator: torch.Generator) -> dict[str, Tensor]:
        r"""``n`` draws of every parameter, name to ``[n, *shape]``.

        :math:`\theta + \sqrt{c}\, [\Lambda^{-1/2} \epsilon - D^T (1 - (1 + s)^{-1/2}) V \epsilon]` for standard normal
        :math:`\epsilon`.
        """
        draws = {name: mean.expand(n, *mean.shape).clone() for name, mean in self._mean.items()}
        noise = {
            name: torch.randn(n, *self._mean[name].shape, dtype=torch.float64, generator=generator, device="cpu")
            for name in self.directions
        }
        along = torch.zeros(n, len(self.curvature), dtype=torch.float64, device="cpu")
        for name, epsilon in noise.items():
            along += epsilon.flatten(1) @ self.directions[name].double().flatten(1).T * self.precision[name] ** 0.5
        along *= 1 - (1 + self.curvature).rsqrt()
        for name, epsilon in noise.items():
            inner = (along @ self.directions[name].double().flatten(1)).view_as(epsilon)
            draws[name] += (self.scale**0.5 * (epsilon / self.precision[name] ** 0.5 - inner)).to(draws[name].dtype)
        return draws

    def logit_covariance(self, jacobian: Mapping[str, Tensor]) -> Tensor:
        """``J Sigma J^T [B, C-1, C-1]`` for the Jacobian of the contrast logits, name to ``[B, C-1, *shape]``.

        Products are taken parameter by parameter, at least in float32, and added up in float64.
        """
        like = next(iter(jacobian.values()))
        total = torch.zeros(*like.shape[:2], like.shape[1], dtype=torch.float64, device=like.device)
        along = torch.zeros(*like.shape[:2], len(self.curvature), dtype=torch.float64, device=like.device)
        for name, directions in self._on(like).items():
            rows = jacobian[name].flatten(2).to(torch.promote_types(like.dtype, torch.float32))
            total += (rows @ rows.mT).double() / self.precision[name]
            along += (rows @ directions.to(rows.dtype).flatten(1).T).double()
        shrink = (self.curvature / (1 + self.curvature)).to(along.device)
        return self.scale * (total - (along * shrink) @ along.mT)

    def _on(self, like: Tensor) -> dict[str, Tensor]:
        """The directions where the Jacobian is, moved there once."""
        place = (like.device, like.dtype)
        if self._placed is None or self._placed[0] != place:
            self._placed = place, {name: rows.to(like.device) for name, rows in self.directions.items()}
        return self._placed[1]

    def state_dict(self) -> dict[str, Any]:
        """Mean and directions by parameter, curvatures, precisions and scale."""
        tensors = {**state_of("mean", self._mean), **state_of("directions", self.directions)}
        return {**tensors, "curvature": self.curvature, "precision": self.precision, "scale": self.scale}

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Any]) -> FullPosterior:
        """The posterior that ``state_dict`` described."""
        rows = parameters_of("directions", state)
        ordered = {name: rows[name] for name in state["precision"]}
        return cls(parameters_of("mean", state), ordered, state["curvature"], state["precision"], state["scale"])
