"""Sample fan-out: S functions in one pass over S times as many rows.

The base model's products, and its dequantisation, run once for all S. Everything below the first layer that holds a
sampled site is the same for every sample and runs on R rows; a hook on each layer from there on repeats what arrives.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from bayeslora.models.memory import free_bytes
from bayeslora.models.noise import noise_positions, row_keys
from bayeslora.models.sites import SiteContext, SiteState
from bayeslora.types import AnswerBatch, Samples, WholeLabels

_TOKENS_PER_PASS_CPU = 16384  # beyond this a CPU pass no longer gets faster per row, only larger


class FanOut:
    """Runs a network's layers on S groups of rows, from the first sampled layer upwards.

    Args:
        trunk: The transformer whose layers hold the sites.
        context: The state its sites share.
    """

    def __init__(self, trunk: nn.Module, context: SiteContext) -> None:
        self.context = context
        self.layers = _find_layers(trunk)
        self._names = {id(module): plain for plain, module in _layer_names(trunk, self.layers)}
        self._rows, self._first = 0, len(self.layers)
        self.copies = 1  # how many times the batch's rows leave the trunk
        for index, layer in enumerate(self.layers):
            layer.register_forward_pre_hook(self._hook(index), with_kwargs=True)

    @contextmanager
    def active(self, batch: AnswerBatch, samples: Samples | None) -> Iterator[None]:
        """Within the block, the trunk fed with the batch's R rows leaves its last layer with S * R rows.

        Args:
            batch: The questions.
            samples: The S samples; None for the current weights without noise.
        """
        state = site_state(batch, samples)
        with self._passing(state, len(batch.input_ids), self._first_sampled(samples), state.groups):
            yield

    @contextmanager
    def apart(self, state: SiteState) -> Iterator[None]:
        """Within the block, rows are not repeated for S weight sets: they come in S groups, and group s meets set s."""
        with self._passing(state, 0, len(self.layers), 1):
            yield

    @contextmanager
    def _passing(self, state: SiteState, rows: int, first: int, copies: int) -> Iterator[None]:
        previous = self._rows, self._first, self.copies
        self._rows, self._first, self.copies = rows, first, copies
        try:
            with self.context.using(state):
                yield
        finally:
            self._rows, self._first, self.copies = previous

    def expand(self, tensor: Tensor) -> Tensor:
        """``[R, ...]`` repeated to ``[S * R, ...]``; anything else is returned as it is."""
        groups = self.context.state.groups
        if groups == 1 or tensor.dim() < 2 or tensor.shape[0] != self._rows:
            return tensor
        return tensor.repeat(groups, *[1] * (tensor.dim() - 1))

    def _first_sampled(self, samples: Samples | None) -> int:
        """Index of the lowest layer that is not the same function for every sample."""
        if samples is None or len(samples) == 1:
            return len(self.layers)
        for index, layer in enumerate(self.layers):
            noisy = samples.draws is not None and any(getattr(m, "noisy", False) for m in layer.modules())
            prefix = self._names[id(layer)] + "."
            if noisy or any(prefix in name for name in (*samples.weights, *samples.perturbations)):
                return index
        return len(self.layers)

    def _hook(self, index: int) -> Any:
        def expand_inputs(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            """A layer's inputs, repeated for every group where they are not yet; None leaves them as they are."""
            if self.context.state.groups == 1 or index < self._first:
                return None
            return tuple(map(self._expand_any, args)), {k: self._expand_any(v) for k, v in kwargs.items()}

        return expand_inputs

    def _expand_any(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            return self.expand(value)
        return tuple(map(self._expand_any, value)) if type(value) is tuple else value


def site_state(batch: AnswerBatch, samples: Samples | None) -> SiteState:
    """The state of the sites for one pass over a batch and its samples.

    Args:
        batch: The questions.
        samples: The S samples; None for the current weights without noise.
    """
    mask = batch.prompt_mask
    if samples is None:
        return SiteState(mask=mask)
    groups = len(samples)
    if samples.draws is None:
        return SiteState(groups=groups, weights=samples.weights, mask=mask)
    positions = torch.ones_like(mask) if samples.coherent else noise_positions(batch)
    return SiteState(
        groups=groups,
        weights=samples.weights,
        keys=row_keys(batch, samples),
        positions=positions.repeat(groups, 1),
        perturbations=samples.perturbations,
        coherent=samples.coherent,
        mask=mask,
        dropout=samples.dropout,
    )


def tail_state(state: SiteState, batch: AnswerBatch, whole: WholeLabels) -> SiteState:
    """The state of the output layer's sites, which meet the end of every row alone: where labels are predicted.

    What sums a row up there is the prompt's last token, as where that is the only one.

    Args:
        state: The state of the whole pass.
        batch: The questions.
        whole: The labels of several tokens.
    """
    last = (noise_positions(batch) == 1) & batch.prompt_mask.bool()
    positions = None if state.positions is None else state.positions[:, -whole.reach :]
    return replace(state, positions=positions, mask=last[:, -whole.reach :].long(), tail=True)


def fitting_chunk(batch: AnswerBatch, samples: Samples, bytes_per_token: int) -> int:
    """How many samples to run in one pass without gradients: what half the free memory holds, at least one.

    Args:
        batch: The questions.
        samples: The S samples.
        bytes_per_token: Peak activation bytes of one token without gradients.
    """
    tokens = batch.input_ids.numel()
    budget = _TOKENS_PER_PASS_CPU
    if batch.input_ids.is_cuda:
        budget = free_bytes(batch.input_ids.device) // (2 * bytes_per_token)
    return max(1, min(len(samples), budget // tokens))


def _find_layers(trunk: nn.Module) -> list[nn.Module]:
    count = getattr(trunk.config, "num_hidden_layers", None)  # type: ignore[union-attr]
    for module in trunk.modules():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return list(module)
    raise ValueError(f"{type(trunk).__name__} has no list of {count} layers")


def _layer_names(trunk: nn.Module, layers: list[nn.Module]) -> Iterator[tuple[str, nn.Module]]:
    """The last two components of every layer's path, for example ``layers.3``: part of all names below it."""
    wanted = {id(layer) for layer in layers}
    for path, module in trunk.named_modules():
        if id(module) in wanted:
            yield ".".join(re.split(r"\.", path)[-2:]), module
