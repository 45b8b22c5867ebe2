"""What C-LoRA leaves behind: a law over a small matrix inside every LoRA update, whose parameters the input sets."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from bayeslora.errors import UsageError
from bayeslora.posteriors.state import parameters_of, state_of


class ContextualPosterior:
    r"""C-LoRA's parameters, and the plain adapter nearest to what they do.

    There is no law over weights here: E is drawn anew for every input. ``mean`` is therefore an approximation, the
    adapter with :math:`E = \mu(0)` folded into A. ``parameters`` are what gives C-LoRA itself back.

    Args:
        adapter: Plain LoRA parameters, name to value.
        parameters: Every trained parameter, name to value.
    """

    family = "contextual"

    def __init__(self, adapter: Mapping[str, Tensor], parameters: Mapping[str, Tensor]) -> None:
        self._adapter = {name: tensor.detach().cpu() for name, tensor in adapter.items()}
        self._parameters = {name: tensor.detach().cpu() for name, tensor in parameters.items()}

    @property
    def parameters(self) -> dict[str, Tensor]:
        """Every trained parameter, those of the contextual modules included, name to ``[*shape]``."""
        return dict(self._parameters)

    def mean(self) -> dict[str, Tensor]:
        """The plain adapter, name to ``[*shape]``."""
        return dict(self._adapter)

    def sample(self, n: int, generator: torch.Generator) -> dict[str, Tensor]:
        """Refused.

        Args:
            n: How many draws.
            generator: Source of the noise, on the CPU; the same state gives the same draws.

        Raises:
            UsageError: always.
        """
        raise UsageError(
            "C-LoRA has no law over weights to sample from: its E depends on the input. Predict with CLoRAModule, from "
            "a checkpoint or with this posterior's folder as backbone.adapter"
        )

    def state_dict(self) -> dict[str, Any]:
        """The plain adapter under ``mean/``, everything under ``parameters/``."""
        return {**state_of("mean", self._adapter), **state_of("parameters", self._parameters)}

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Any]) -> ContextualPosterior:
        """The posterior that ``state_dict`` described."""
        return cls(parameters_of("mean", state), parameters_of("parameters", state))
