"""Contextual modules of one shape, whose laws are computed all at once where their contexts are known."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import relu

if TYPE_CHECKING:
    from bayeslora.models.c_lora import ContextualModule


class ContextualStack:
    """L contextual modules whose parameters are stacked for one pass and for the divergence at its contexts.

    The pass takes its parameters from the stack too (``ContextualModule.shared``), so that both gradients add up in
    one tensor and not in each of L.

    Args:
        modules: Of one rank, width and kind of context, which meet contexts of one shape.
    """

    def __init__(self, modules: list[ContextualModule]) -> None:
        self.modules = modules
        names = modules[0].maps()
        self.maps = {name: torch.stack([module.maps()[name] for module in modules]) for name in names}
        parts = {name: stack.unbind() for name, stack in self.maps.items()}
        for place, module in enumerate(modules):
            module.recording, module.shared = True, {name: part[place] for name, part in parts.items()}

    def contexts(self) -> Tensor:
        """The contexts that the modules have met ``[L, N, T, r]``."""
        return torch.stack([module.recorded for module in self.modules])  # type: ignore[misc]

    def laws(self, contexts: Tensor) -> tuple[Tensor, Tensor]:
        r""":meth:`ContextualModule.law` of all modules, each at contexts of its own.

        Args:
            contexts: ``[L, N, T, r]``.

        Returns:
            Mean :math:`\mu` and :math:`\rho`, both ``[L, r * r, N, T]``.
        """
        features = contexts.flatten(1, 2).mT
        if "out.bias" in self.maps:
            for name in ("hidden", "out"):
                features = relu(features) if name == "out" else features
                features = torch.baddbmm(self.maps[f"{name}.bias"][..., None], self.maps[f"{name}.weight"], features)
        else:
            features = self.maps["out.weight"] @ torch.ones_like(features[:, :1])
        mean, rho = features.unflatten(-1, contexts.shape[1:3]).chunk(2, 1)
        return mean, rho


def stacked(modules: Iterable[ContextualModule]) -> list[ContextualStack]:
    """Stacks of all modules: those within layers by rank, since they meet contexts of one shape; any other alone."""
    groups: dict[int | str, list[ContextualModule]] = {}
    for module in modules:
        groups.setdefault(module.rank if module.block else module.name, []).append(module)
    return [ContextualStack(group) for group in groups.values()]
