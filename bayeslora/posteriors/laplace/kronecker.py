"""Kronecker-factored blocks: the sums they are made from, and the basis in which they are diagonal."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bayeslora.posteriors.laplace.blocks import BlockGaussian
from bayeslora.posteriors.laplace.factors import OuterSum
from bayeslora.posteriors.state import parameters_of


@dataclass(frozen=True)
class KroneckerBlock:
    r"""Curvature :math:`(U \otimes V) \mathrm{diag}(s) (U \otimes V)^T` of one parameter's matrix ``[o, i]``.

    Attributes:
        values: Curvatures s ``[k, l]``, not negative.
        left: U, orthonormal columns ``[o, k]``.
        right: V, orthonormal columns ``[i, l]``.
    """

    values: Tensor
    left: Tensor
    right: Tensor

    @property
    def complete(self) -> bool:
        """Whether the basis spans the whole space."""
        return self.values.shape == (len(self.left), len(self.right))

    def to(self, device: torch.device, dtype: torch.dtype) -> KroneckerBlock:
        """The same block elsewhere: bases in a dtype and one layout, as strides decide how sums round.

        Args:
            device: Where to put it.
            dtype: Of the bases.
        """
        bases = (basis.to(device, dtype).contiguous() for basis in (self.left, self.right))
        return KroneckerBlock(self.values.to(device), *bases)

    def scaled(self, factor: float) -> KroneckerBlock:
        """The block with its curvatures times a factor."""
        return KroneckerBlock(factor * self.values, self.left, self.right)

    def rotate(self, matrices: Tensor) -> Tensor:
        """Coordinates ``[..., k, l]`` of matrices ``[..., o, i]``, the longer side first."""
        if len(self.left) > len(self.right):
            return (self.left.mT @ matrices) @ self.right
        return self.left.mT @ (matrices @ self.right)

    def back(self, coordinates: Tensor) -> Tensor:
        """Matrices ``[..., o, i]`` of coordinates ``[..., k, l]``, the longer side last."""
        if len(self.left) > len(self.right):
            return self.left @ (coordinates @ self.right.mT)
        return (self.left @ coordinates) @ self.right.mT


class KroneckerSums:
    r"""Both factors of one parameter's block: :math:`S_o = \sum v v^T` over outputs, :math:`S_i` over inputs.

    Args:
        shape: Shape ``[o, i]`` of the parameter as a matrix.
        rank: Number of eigenpairs of a long side's factor, see :class:`OuterSum`.
        device: Where the sums are kept.
    """

    def __init__(self, shape: tuple[int, int], rank: int | None, device: torch.device | str) -> None:
        self.outer, self.inner = (OuterSum(size, rank, device) for size in shape)

    def block(self, divisor: Tensor | float) -> KroneckerBlock:
        r"""The block :math:`S_o \otimes S_i / \mathrm{divisor}`; zero where the divisor is."""
        (outer, left), (inner, right) = self.outer.eigenpairs(), self.inner.eigenpairs()
        scale = torch.as_tensor(divisor, dtype=torch.float64, device=inner.device)
        inner = torch.where(scale > 0, inner / scale, 0.0)
        return KroneckerBlock(torch.outer(outer, inner), left, right)

    def state_dict(self) -> dict[str, Tensor]:
        """Tensors from which :meth:`load_state_dict` goes on bit for bit."""
        sides = {"outer": self.outer.state_dict(), "inner": self.inner.state_dict()}
        return {f"{side}/{kind}": tensor for side, state in sides.items() for kind, tensor in state.items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take up the sums that ``state_dict`` described."""
        for side, outer in (("outer", self.outer), ("inner", self.inner)):
            outer.load_state_dict(parameters_of(side, state))


class KroneckerPosterior(BlockGaussian[KroneckerBlock]):
    """Laplace's Gaussian with one Kronecker-factored block a parameter, see :class:`BlockGaussian`."""

    family = "laplace_kronecker"

    @staticmethod
    def _tensors_of(block: KroneckerBlock) -> dict[str, Tensor]:
        return {"values": block.values, "left": block.left, "right": block.right}

    @staticmethod
    def _block_of(name: str, state: Mapping[str, Any]) -> KroneckerBlock:
        return KroneckerBlock(*(state[f"{kind}/{name}"] for kind in ("values", "left", "right")))
