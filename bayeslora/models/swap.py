"""Other values in a module's parameters for the length of a block."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn


@contextmanager
def kept(parameters: Mapping[str, nn.Parameter]) -> Iterator[None]:
    """Whatever is filled in within the block, parameters leave it as they were, bit for bit, also after an error."""
    own = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    try:
        yield
    finally:
        fill(parameters, own)


@torch.no_grad()
def fill(parameters: Mapping[str, nn.Parameter], values: Mapping[str, Tensor]) -> None:
    """Copy values into the parameters' own memory, so that DDP's buckets, CUDA graphs and compiled code see them.

    Args:
        parameters: Name to parameter.
        values: Value by name; parameters that are not named stay as they are.
    """
    for name, value in values.items():
        parameters[name].copy_(value)
