"""Weights that are written in place, and weights and modes that are put back as they were."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn


@torch.no_grad()
def write_weights(parameters: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
    """Copy values into the parameters' own memory, so that DDP's buckets, CUDA graphs and compiled code see them.

    Autocast keeps the low-precision copies it has made of parameters until its region ends. They are dropped here:
    otherwise a module whose weights are written within a region would go on answering with the weights of before.

    Args:
        parameters: Name to parameter, or to a view of one.
        values: Value by name; parameters that are not named stay as they are.
    """
    for name, value in values.items():
        parameters[name].copy_(value)
    torch.clear_autocast_cache()


@contextmanager
def restored_weights(parameters: Mapping[str, Tensor]) -> Iterator[None]:
    """Whatever is written within the block, parameters leave it as they were, bit for bit, also after an error.

    Args:
        parameters: Name to parameter.
    """
    own = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    try:
        yield
    finally:
        write_weights(parameters, own)


@contextmanager
def evaluation_mode(module: nn.Module) -> Iterator[None]:
    """Eval mode within the block; every submodule leaves it in the mode it came in, also after an error.

    A module whose parts are in different modes (a frozen batch normalisation in a network that trains) keeps them so,
    which ``module.train()`` would not.
    """
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training
