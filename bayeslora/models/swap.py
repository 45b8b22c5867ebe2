"""Other values in a module's parameters for the length of a block."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn


@contextmanager
def swapped(parameters: Mapping[str, nn.Parameter], values: Mapping[str, Tensor]) -> Iterator[None]:
    """Within the block, parameters hold other values; afterwards their own again, bit for bit, also after an error.

    Values are copied into the parameters' own memory, so that whoever holds a reference to it (DDP's buckets, CUDA
    graphs, compiled code) sees them.

    Args:
        parameters: Name to parameter.
        values: Value by name; parameters that are not named stay as they are.
    """
    own = {name: parameters[name].detach().clone() for name in values}
    try:
        _fill(parameters, values)
        yield
    finally:
        _fill(parameters, own)


@torch.no_grad()
def _fill(parameters: Mapping[str, nn.Parameter], values: Mapping[str, Tensor]) -> None:
    for name, value in values.items():
        parameters[name].copy_(value)
