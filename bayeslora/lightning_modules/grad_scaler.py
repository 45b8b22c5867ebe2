"""The gradient scaler of float16 training, where a method's step is more than one optimiser's or one member's."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import lightning as L
from torch.amp import GradScaler


def scaler_of(trainer: L.Trainer) -> GradScaler | None:
    """The gradient scaler of ``16-mixed``; None in every other precision."""
    return getattr(trainer.precision_plugin, "scaler", None)


def may_overflow(trainer: L.Trainer) -> bool:
    """Whether gradients that are not finite may be the scale's doing alone: the step is skipped then, the scale halved.

    With a scale of 1 or less, and without a scaler, they are the loss's own.
    """
    scaler = scaler_of(trainer)
    return scaler is not None and scaler.get_scale() > 1


@contextmanager
def one_update(trainer: L.Trainer) -> Iterator[None]:
    """Within the block several optimisers step under one scale, which is updated once, when the block ends.

    The trainer updates the scale after the step of each optimiser. Gradients that one backward pass leaves for the
    second would then be divided by another scale than they were multiplied with.

    Args:
        trainer: Whose scaler it is; without one, the block does nothing.
    """
    scaler = scaler_of(trainer)
    if scaler is None:
        yield
        return
    update = scaler.update
    scaler.update = lambda new_scale=None: None  # type: ignore[method-assign]
    try:
        yield
    finally:
        scaler.update = update  # type: ignore[method-assign]
    scaler.update()
