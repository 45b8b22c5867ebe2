"""A bank of weight samples: drawn once for an evaluation, so that all its questions meet the same functions."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from bayeslora.streams import generator
from bayeslora.types import Posterior, Samples


def draw_bank(posterior: Posterior, count: int, seed: int, method: str) -> dict[str, Tensor]:
    """S joint draws of a posterior, name to ``[S, *shape]``, from a stream of randomness of their own.

    Args:
        posterior: The law to draw from.
        count: Number S of draws.
        seed: Names the stream, with the method.
        method: What the prediction path calls it.
    """
    return posterior.sample(count, generator(seed, method, "posterior"))


def weight_samples(draws: Mapping[str, Tensor], parameters: Mapping[str, Tensor], noise: int | None = None) -> Samples:
    """Draws of weights as S functions of a model, on the device and in the dtype of its parameters.

    Args:
        draws: Parameter name to ``[S, *shape]``.
        parameters: The model's parameters by name; all that are drawn must be among them.
        noise: Seeds a draw of dropout for every sample; None for no dropout.
    """
    weights = {name: value.to(parameters[name]) for name, value in draws.items()}
    ids = None if noise is None else torch.arange(len(next(iter(draws.values()))), device="cpu")
    return Samples(weights, ids, noise or 0)
