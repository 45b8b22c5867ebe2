"""A point: the posterior that fine-tuning without a method leaves behind."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from bayeslora.posteriors.state import parameters_of, state_of


class Point:
    """All mass on one value of the parameters.

    Args:
        value: Parameter name to value.
    """

    family = "point"

    def __init__(self, value: Mapping[str, Tensor]) -> None:
        self._value = {name: tensor.detach().cpu() for name, tensor in value.items()}

    def mean(self) -> dict[str, Tensor]:
        """The value, name to ``[*shape]``."""
        return dict(self._value)

    def sample(self, n: int, generator: torch.Generator) -> dict[str, Tensor]:
        """The value ``n`` times over, name to ``[n, *shape]``.

        Args:
            n: How many draws.
            generator: Source of the noise, on the CPU; the same state gives the same draws.
        """
        return {name: value.expand(n, *value.shape).clone() for name, value in self._value.items()}

    def state_dict(self) -> dict[str, Any]:
        """The value under ``mean/``."""
        return state_of("mean", self._value)

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Any]) -> Point:
        """The point that ``state_dict`` described."""
        return cls(parameters_of("mean", state))
