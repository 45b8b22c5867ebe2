"""Dropout of a module of another package, switched on for one draw."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from bayeslora.errors import UsageError
from bayeslora.streams import global_draws

_KINDS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)
_LORA = "lora_dropout"  # peft's name


def dropout_layers(module: nn.Module) -> list[nn.Module]:
    """The dropout layers of a module: those of its LoRA layers where it has such, else all of them.

    Args:
        module: Any module.

    Raises:
        UsageError: none of them drops anything.
    """
    found: dict[str, nn.Module] = {
        name: layer for name, layer in module.named_modules() if isinstance(layer, _KINDS) and layer.p > 0
    }
    layers = [layer for name, layer in found.items() if _LORA in name.split(".")] or list(found.values())
    if not layers:
        raise UsageError(
            f"{type(module).__name__} has no dropout to draw: no nn.Dropout with p > 0, LoRA's (lora_dropout) included"
        )
    return layers


@contextmanager
def dropout_draw(layers: list[nn.Module], seed: int, device: torch.device) -> Iterator[None]:
    """Within the block the layers drop, by a generator that starts at ``seed``; modes and generators are put back.

    The mask belongs to a place in a batch, so that a question's draw depends on the batch it is in. Modules of this
    package draw by the question itself (:mod:`bayeslora.models.noise`).

    Args:
        layers: Of :func:`dropout_layers`.
        seed: Of a stream.
        device: Where the layers draw.
    """
    modes = [layer.training for layer in layers]
    try:
        for layer in layers:
            layer.train()
        with global_draws(seed, device):
            yield
    finally:
        for layer, training in zip(layers, modes, strict=True):
            layer.training = training
