"""What a fitted curvature offers, whatever its structure, to the choice of the prior and to prediction."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from bayeslora.posteriors.laplace.blocks import BlockGaussian
from bayeslora.posteriors.laplace.evidence import independent
from bayeslora.types import GaussianPosterior

#: Name of a group of parameters that share a precision, to the parameters' names.
Groups = Mapping[str, Sequence[str]]


class Curvature(Protocol):
    """The Gauss-Newton matrix at the weights a run has found, in some structure, with G groups of parameters."""

    def log_det(self, precisions: Tensor) -> Tensor:
        """Log-determinant of posterior over prior precision for precisions ``[G]``, differentiable, float64."""
        ...

    def covariance(self, precisions: Tensor) -> Tensor:
        """Covariance of the validation questions' contrast logits ``[N, C-1, C-1]`` for precisions ``[G]``, float64."""
        ...

    def shift(self, precisions: Tensor) -> Tensor | None:
        """What the Gaussian's mean adds to the validation questions' contrasts ``[N, C-1]``; None for nothing."""
        ...

    def posterior(self, precisions: Tensor, scale: float = 1.0) -> GaussianPosterior:
        """The Gaussian under precisions ``[G]``, its covariance times ``scale``.

        Args:
            precisions: The prior's precision of each group of weights ``[G]``.
            scale: Factor on the covariance.
        """
        ...

    def eigenvalues(self) -> Tensor:
        """Eigenvalues of the Gauss-Newton matrix that may differ from zero ``[m]``, float64."""
        ...


class BlockCurvature:
    """Curvature in blocks that do not touch each other: Kronecker-factored or diagonal.

    Args:
        gaussian: The blocks and the weights, under any precision.
        groups: Parameters that share a precision.
        validation: Gives the Jacobians of the validation questions, batch by batch; called for every precision tried.
    """

    def __init__(
        self,
        gaussian: BlockGaussian[Any],
        groups: Groups,
        validation: Callable[[], Iterable[Mapping[str, Tensor]]],
    ) -> None:
        self.gaussian, self.groups, self.validation = gaussian, groups, validation
        values = gaussian.eigenvalues()
        self._log_det = independent([torch.cat([values[name] for name in names]) for names in groups.values()])

    def log_det(self, precisions: Tensor) -> Tensor:
        """See :class:`Curvature`."""
        return self._log_det(precisions)

    def covariance(self, precisions: Tensor) -> Tensor:
        """See :class:`Curvature`."""
        posterior = self.posterior(precisions)
        return torch.cat([posterior.logit_covariance(jacobian).cpu() for jacobian in self.validation()])

    def shift(self, precisions: Tensor) -> None:
        """See :class:`Curvature`: the Gaussian is around the weights themselves."""
        return

    def posterior(self, precisions: Tensor, scale: float = 1.0) -> BlockGaussian[Any]:
        """See :class:`Curvature`.

        Args:
            precisions: The prior's precision of each group of weights ``[G]``.
            scale: Factor on the covariance.
        """
        per_name = {
            name: precision
            for names, precision in zip(self.groups.values(), precisions.tolist(), strict=True)
            for name in names
        }
        blocks = {name: block for name, block in self.gaussian.blocks.items() if name in per_name}
        return type(self.gaussian)(self.gaussian.mean(), blocks, per_name).scaled(1 / scale)

    def eigenvalues(self) -> Tensor:
        """See :class:`Curvature`."""
        values = self.gaussian.eigenvalues()
        return torch.cat([values[name] for names in self.groups.values() for name in names])
