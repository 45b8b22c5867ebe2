r"""Gaussians whose covariance is block-diagonal over parameters, each block diagonal in a basis of its own.

With a parameter's matrix :math:`W [o, i]`, orthonormal columns :math:`U [o, k]`, :math:`V [i, l]` and curvatures
:math:`s [k, l]`, the block of the Gauss-Newton matrix is :math:`(U \otimes V) \mathrm{diag}(s) (U \otimes V)^T`, and
the posterior's precision :math:`P` is that plus :math:`\lambda I`. A direction outside the basis keeps the prior's
variance :math:`1 / \lambda`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, Generic, Protocol, Self, TypeVar

import torch
from torch import Tensor

from bayeslora.errors import UsageError
from bayeslora.posteriors.on_device import OnDevice
from bayeslora.posteriors.state import parameters_of, state_of


class Block(Protocol):
    """The curvature of one parameter, in the basis where it is diagonal."""

    @property
    def values(self) -> Tensor:
        """Curvatures s, float64, not negative."""
        ...

    @property
    def complete(self) -> bool:
        """Whether the basis spans the whole space."""
        ...

    def to(self, device: torch.device, dtype: torch.dtype) -> Self:
        """The same block elsewhere: its basis in a dtype, its curvatures in float64.

        Args:
            device: Where to put it.
            dtype: Of the basis.
        """
        ...

    def scaled(self, factor: float) -> Self:
        """The block with its curvatures times a factor."""
        ...

    def rotate(self, matrices: Tensor) -> Tensor:
        r"""Coordinates :math:`U^T G V` ``[..., *values.shape]`` of matrices ``[..., o, i]``."""
        ...

    def back(self, coordinates: Tensor) -> Tensor:
        r"""The matrices :math:`U t V^T` ``[..., o, i]`` of coordinates ``[..., *values.shape]``."""
        ...


B = TypeVar("B", bound=Block)


class BlockGaussian(OnDevice, ABC, Generic[B]):
    """A Gaussian posterior over parameters that are independent of each other.

    Args:
        mean: Parameter name to value.
        blocks: Parameter name to its block; a parameter without one is known for certain.
        precision: Precision of the prior, above 0: one for all, or parameter name to value.

    Raises:
        UsageError: a block without a mean, a precision that is missing or not above 0.
    """

    family: str

    def __init__(
        self, mean: Mapping[str, Tensor], blocks: Mapping[str, B], precision: float | Mapping[str, float]
    ) -> None:
        per_name = precision if isinstance(precision, Mapping) else dict.fromkeys(blocks, precision)
        for name in blocks:
            if name not in mean or not per_name.get(name, 0.0) > 0:
                raise UsageError(f"{name} needs a mean and a prior precision above 0; given {per_name.get(name)}")
        self._mean = {name: value.detach().cpu() for name, value in mean.items()}
        self.blocks = dict(blocks)
        self.precision = {name: float(per_name[name]) for name in blocks}

    def mean(self) -> dict[str, Tensor]:
        """The weights the Gaussian is around, name to ``[*shape]``."""
        return dict(self._mean)

    def scaled(self, factor: float) -> Self:
        """The posterior with curvatures and precisions times a factor: its covariance is divided by it."""
        precision = {name: factor * value for name, value in self.precision.items()}
        return type(self)(self._mean, {name: block.scaled(factor) for name, block in self.blocks.items()}, precision)

    def eigenvalues(self) -> dict[str, Tensor]:
        """Every parameter's curvatures, name to a vector, float64; those that are not listed are zero."""
        return {name: block.values.flatten() for name, block in self.blocks.items()}

    def sample(self, n: int, generator: torch.Generator) -> dict[str, Tensor]:
        """``n`` draws of every parameter, name to ``[n, *shape]``.

        Args:
            n: How many draws.
            generator: Source of the noise, on the CPU; the same state gives the same draws.
        """
        draws = {}
        for name, mean in self._mean.items():
            draws[name] = mean.expand(n, *mean.shape).clone()
            if name in self.blocks:
                noise = torch.randn(n, *mean.shape, dtype=torch.float64, generator=generator, device="cpu")
                block = self.blocks[name].to(noise.device, noise.dtype)
                draws[name] += draw(block, self.precision[name], as_matrix(noise, 1)).reshape(noise.shape).to(mean)
        return draws

    def logit_covariance(self, jacobian: Mapping[str, Tensor]) -> Tensor:
        """``J P^-1 J^T [B, C-1, C-1]`` for the Jacobian of the contrast logits, name to ``[B, C-1, *shape]``."""
        like = next(iter(jacobian.values()))
        total = torch.zeros(*like.shape[:2], like.shape[1], dtype=torch.float64, device=like.device)
        for name, block in self._on(like).items():
            total += covariance(block, self.precision[name], as_matrix(jacobian[name], 2))
        return total

    def _on(self, like: Tensor) -> dict[str, B]:
        """The blocks where and as the Jacobian is, moved there once."""
        place = (like.device, torch.promote_types(like.dtype, torch.float32))
        return self.placed(place, lambda: {name: block.to(*place) for name, block in self.blocks.items()})

    def state_dict(self) -> dict[str, Any]:
        """Mean, blocks by parameter, and the prior's precisions."""
        state: dict[str, Any] = {"precision": self.precision, "order": list(self._mean)}
        state |= state_of("mean", self._mean)
        for name, block in self.blocks.items():
            state |= {f"{kind}/{name}": tensor for kind, tensor in self._tensors_of(block).items()}
        return state

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Any]) -> Self:
        """The posterior that ``state_dict`` described."""
        mean = parameters_of("mean", state)
        blocks = {name: cls._block_of(name, state) for name in state["precision"]}
        return cls({name: mean[name] for name in state["order"]}, blocks, state["precision"])

    @staticmethod
    @abstractmethod
    def _tensors_of(block: B) -> dict[str, Tensor]:
        """A block's tensors by their kinds, ``values`` among them."""

    @staticmethod
    @abstractmethod
    def _block_of(name: str, state: Mapping[str, Any]) -> B:
        """The inverse of :meth:`_tensors_of`, from entries ``kind/name``."""


def as_matrix(value: Tensor, leading: int = 0) -> Tensor:
    """A weight ``[*leading, o, i]`` as it is, a bias ``[*leading, o]`` as ``[*leading, o, 1]``.

    Args:
        value: The weight or bias.
        leading: Number of dimensions in front of its own.
    """
    return value if value.dim() - leading == 2 else value[..., None]


def covariance(block: Block, precision: float, jacobian: Tensor) -> Tensor:
    r"""One parameter's share :math:`J P^{-1} J^T [B, D, D]` for its Jacobian ``[B, D, o, i]``, float64.

    .. math:: \sum_{kl} \frac{t_{kl} t_{kl}^T}{s_{kl} + \lambda} + \frac{1}{\lambda} J_\perp J_\perp^T, \qquad
        t = U^T J V, \quad J_\perp = J - U t V^T

    Both terms are positive semi-definite in any precision, which a difference of two large terms would not be.

    Args:
        block: The fitted curvature of one parameter.
        precision: The prior's precision.
        jacobian: Its Jacobian ``[B, D, o, i]``.
    """
    jacobian = jacobian.to(torch.promote_types(jacobian.dtype, torch.float32))
    rotated = block.rotate(jacobian)
    total = _inner(rotated / (block.values + precision).sqrt().to(rotated.dtype))
    if not block.complete:
        total += _inner(jacobian - block.back(rotated)) / precision
    return total


def draw(block: Block, precision: float, noise: Tensor) -> Tensor:
    r"""What standard normal ``noise [n, o, i]`` stands for: n draws of the deviation from the mean.

    .. math:: P^{-1/2} \epsilon = \frac{1}{\sqrt\lambda} \left[ \epsilon - U (c \odot U^T \epsilon V) V^T \right],
        \qquad c = 1 - \sqrt{\lambda / (s + \lambda)}

    Args:
        block: The fitted curvature of one parameter.
        precision: The prior's precision.
        noise: Standard normal numbers ``[n, o, i]``.
    """
    shrink = 1 - (precision / (block.values + precision)).sqrt()
    inner = block.back(block.rotate(noise) * shrink.to(noise.dtype))
    return (noise - inner) / precision**0.5


def _inner(rows: Tensor) -> Tensor:
    """``[B, D, ...]`` to the products of the D rows ``[B, D, D]``, float64."""
    flat = rows.flatten(2)
    return (flat @ flat.mT).double()
