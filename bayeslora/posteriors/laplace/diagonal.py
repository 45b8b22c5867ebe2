"""Diagonal blocks: every weight is independent of all others."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bayeslora.posteriors.laplace.blocks import BlockGaussian


@dataclass(frozen=True)
class DiagonalBlock:
    """Curvature of every entry of one parameter's matrix ``[o, i]``: the basis is the one the weights are in.

    Attributes:
        values: Curvatures ``[o, i]``, not negative.
    """

    values: Tensor

    @property
    def complete(self) -> bool:
        """The basis always spans the whole space."""
        return True

    def to(self, device: torch.device, dtype: torch.dtype) -> DiagonalBlock:
        """The same block on another device.

        Args:
            device: Where to put it.
            dtype: Not used: a diagonal has no basis, and its curvatures stay in float64.
        """
        return DiagonalBlock(self.values.to(device))

    def scaled(self, factor: float) -> DiagonalBlock:
        """The block with its curvatures times a factor."""
        return DiagonalBlock(factor * self.values)

    def rotate(self, matrices: Tensor) -> Tensor:
        """The matrices themselves."""
        return matrices

    def back(self, coordinates: Tensor) -> Tensor:
        """The coordinates themselves."""
        return coordinates


class DiagonalPosterior(BlockGaussian[DiagonalBlock]):
    """Laplace's Gaussian with independent weights, see :class:`BlockGaussian`."""

    family = "laplace_diagonal"

    @staticmethod
    def _tensors_of(block: DiagonalBlock) -> dict[str, Tensor]:
        return {"values": block.values}

    @staticmethod
    def _block_of(name: str, state: Mapping[str, Any]) -> DiagonalBlock:
        return DiagonalBlock(state[f"values/{name}"])
