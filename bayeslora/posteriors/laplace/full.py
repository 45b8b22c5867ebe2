"""Laplace's Gaussian with the full Gauss-Newton matrix, by the directions in which it differs from the prior."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from bayeslora.errors import UsageError
from bayeslora.posteriors.on_device import OnDevice
from bayeslora.posteriors.state import check_same_parameters, parameters_of, state_of
from bayeslora.quadrature import eigh

_COLUMNS = 16384  # of one parameter's directions that are held in float64 at a time
_ROUNDING = 1e-3  # most that float32 products may lose of the smallest variance before float64 ones are taken


class FullPosterior(OnDevice):
    r"""A Gaussian whose covariance is the prior's, less what the data determine along k directions.

    With the prior's precisions :math:`\Lambda`, rows V ``[k, P]`` and curvatures s of the whitened Gauss-Newton matrix
    :math:`\Lambda^{-1/2} G \Lambda^{-1/2} = V^T \mathrm{diag}(s) V`,

    .. math:: \Sigma = c\, \Lambda^{-1/2} \left( I + V^T \mathrm{diag}(s) V \right)^{-1} \Lambda^{-1/2}
        = c\, \Lambda^{-1/2} \left( I - V^T \left( \mathrm{diag}(s)^{-1} + V V^T \right)^{-1} V \right)
        \Lambda^{-1/2}.

    V is orthonormal until it is rounded to the dtype it is kept in. What is computed is the inverse of the sum on the
    left for the rows as they are kept, from their inner products :math:`V V^T`, so that no variance is ever below
    :math:`1 / (1 + s_1)` of the prior's, whatever the rounding; how far rounding may raise one is :attr:`rounding`.

    With all directions :math:`\Sigma = c\,(G + \Lambda)^{-1}`. Without those of the smallest curvatures, a variance is
    too large by at most :math:`s_{k+1} / (1 + s_{k+1})` of the prior's. The rows kept are :math:`D = V \Lambda^{-1/2}`,
    so that the training Jacobians are not needed any more.

    Args:
        mean: The weights that the network is linearised at, parameter name to value.
        directions: D by parameter, name to ``[k, *shape]``; a parameter without them is known for certain.
        curvature: s ``[k]``, not negative, largest first.
        precision: Parameter name to the prior's precision, above 0.
        scale: Factor c on the covariance.
        shift: v, from the weights above to the Gaussian's own mean, name to ``[*shape]``; None where they are the same.
        products: :math:`V V^T` ``[k, k]``, float64; None computes them from the directions when they are first needed.

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
        shift: Mapping[str, Tensor] | None = None,
        products: Tensor | None = None,
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
        self.shift = None if shift is None else {name: value.detach().cpu() for name, value in shift.items()}
        if products is not None:
            self.products = products.detach().double().cpu()

    @cached_property
    def products(self) -> Tensor:
        """Inner products of the rows V as they are kept ``[k, k]``, float64: the identity but for their rounding."""
        total = torch.zeros(len(self.curvature), len(self.curvature), dtype=torch.float64, device="cpu")
        for name, rows in self.directions.items():
            for part in rows.flatten(1).split(_COLUMNS, 1):
                total += self.precision[name] * (part.double() @ part.double().T)
        return total

    @property
    def rounding(self) -> float:
        """By how much of itself the rounding of the directions may raise the smallest variance, about s u^2 / 6.

        u is the unit roundoff of the directions' dtype, 2^-8 for bfloat16 and 2^-24 for float32: a rounded direction
        leaves the one it stands for by an angle of that size, and the prior's variance comes in through it.
        """
        if not len(self.curvature) or not self.directions:
            return 0.0
        roundoff = torch.finfo(next(iter(self.directions.values())).dtype).eps / 2
        return self.curvature.max().item() * roundoff**2 / 6

    def mean(self) -> dict[str, Tensor]:
        """The weights the network is linearised at, name to ``[*shape]``; the Gaussian's own mean is ``shift`` off."""
        return dict(self._mean)

    def sample(self, n: int, generator: torch.Generator) -> dict[str, Tensor]:
        r"""``n`` draws of every parameter, name to ``[n, *shape]``.

        :math:`\theta + v + \sqrt{c}\, \Lambda^{-1/2} (I - V^T M V) \epsilon` for standard normal :math:`\epsilon`,
        with the k x k matrix M of which :math:`(I - V^T M V)^2 = (I + V^T \mathrm{diag}(s) V)^{-1}`.

        Args:
            n: How many draws.
            generator: Source of the noise, on the CPU; the same state gives the same draws.
        """
        draws = {name: mean.expand(n, *mean.shape).clone() for name, mean in self._mean.items()}
        for name, value in (self.shift or {}).items():
            draws[name] += value.to(draws[name])
        noise = {
            name: torch.randn(n, *self._mean[name].shape, dtype=torch.float64, generator=generator, device="cpu")
            for name in self.directions
        }
        along = torch.zeros(n, len(self.curvature), dtype=torch.float64, device="cpu")
        for name, epsilon in noise.items():
            along += epsilon.flatten(1) @ self.directions[name].double().flatten(1).T * self.precision[name] ** 0.5
        along = along @ self._shrinkage()
        for name, epsilon in noise.items():
            inner = (along @ self.directions[name].double().flatten(1)).view_as(epsilon)
            draws[name] += (self.scale**0.5 * (epsilon / self.precision[name] ** 0.5 - inner)).to(draws[name].dtype)
        return draws

    def _shrinkage(self) -> Tensor:
        r"""M of :meth:`sample`, :math:`H^{-1} [I - (I + H \mathrm{diag}(s) H)^{-1/2}] H^{-1}`, :math:`H^2 = V V^T`."""
        values, vectors = eigh(self.products)
        values = values.clamp(min=torch.finfo(torch.float64).tiny)
        half, inverse = ((vectors * values**power) @ vectors.T for power in (0.5, -0.5))
        curvatures, axes = eigh(half * self.curvature @ half)
        return inverse @ (axes * (1 - (1 + curvatures.clamp(min=0)).rsqrt())) @ axes.T @ inverse

    def logit_covariance(self, jacobian: Mapping[str, Tensor]) -> Tensor:
        """``J Sigma J^T [B, C-1, C-1]`` for the Jacobian of the contrast logits, name to ``[B, C-1, *shape]``.

        Products are taken parameter by parameter in float32, in float64 where the curvatures ask for it, and added up
        in float64. The result is at least :math:`1 / (1 + s_1)` of the prior's: what rounding left below is raised.
        """
        like = next(iter(jacobian.values()))
        total = torch.zeros(*like.shape[:2], like.shape[1], dtype=torch.float64, device=like.device)
        along = torch.zeros(*like.shape[:2], len(self.curvature), dtype=torch.float64, device=like.device)
        largest = self.curvature.max().item() if len(self.curvature) else 0.0
        wide = torch.float32 if largest * torch.finfo(torch.float32).eps < _ROUNDING else torch.float64
        for name, directions in self._on(like.device).items():
            rows = jacobian[name].flatten(2).to(torch.promote_types(like.dtype, wide))
            total += (rows @ rows.mT).double() / self.precision[name]
            along += (rows @ directions.to(rows.dtype).flatten(1).T).double()
        explained = torch.linalg.solve_triangular(self._root.to(along.device), along.mT, upper=False)
        least = total / (1 + largest)
        return self.scale * (least + _positive(total - least - explained.mT @ explained))

    @cached_property
    def _root(self) -> Tensor:
        """Cholesky factor of the matrix that is inverted, for directions with a curvature above 0."""
        inverse = 1 / self.curvature.clamp(min=torch.finfo(torch.float64).tiny)
        return torch.linalg.cholesky(self.products + inverse.clamp(max=1e30).diag())

    def logit_shift(self, jacobian: Mapping[str, Tensor]) -> Tensor | float:
        """``J v [B, C-1]``, what the Gaussian's own mean adds to the contrast logits; 0 without a shift."""
        if self.shift is None:
            return 0.0
        like = next(iter(jacobian.values()))
        total = torch.zeros(*like.shape[:2], dtype=torch.float64, device=like.device)
        for name, value in self.shift.items():
            total += jacobian[name].flatten(2).double() @ value.to(like.device).double().flatten()
        return total

    def _on(self, device: torch.device) -> dict[str, Tensor]:
        """The directions where the Jacobian is, moved there once."""
        return self.placed(device, lambda: {name: rows.to(device) for name, rows in self.directions.items()})

    def state_dict(self) -> dict[str, Any]:
        """Mean, shift and directions by parameter, the directions' products, curvatures, precisions and scale."""
        tensors = {**state_of("mean", self._mean), **state_of("directions", self.directions)}
        tensors |= {"products": self.products, **({} if self.shift is None else state_of("shift", self.shift))}
        return {**tensors, "curvature": self.curvature, "precision": self.precision, "scale": self.scale}

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Any]) -> FullPosterior:
        """The posterior that ``state_dict`` described; of files of version 0.1.0 too, which know no shift."""
        rows = parameters_of("directions", state)
        ordered = {name: rows[name] for name in state["precision"]}
        return cls(
            parameters_of("mean", state),
            ordered,
            state["curvature"],
            state["precision"],
            state["scale"],
            {name: moved[name] for name in ordered} if (moved := parameters_of("shift", state)) else None,
            state.get("products"),
        )


def _positive(matrices: Tensor) -> Tensor:
    """Symmetric matrices ``[B, D, D]`` with eigenvalues below zero raised to it; rounding alone makes such."""
    values, vectors = eigh((matrices + matrices.mT) / 2)
    return (vectors * values.clamp(min=0)[:, None, :]) @ vectors.mT
