"""Passes over the data that leave their sums on disk, where a pass that was killed goes on."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from time import monotonic
from typing import Any

import torch

from bayeslora.curvature.structures import Accumulator
from bayeslora.models.answer_model import AnswerModel
from bayeslora.posteriors.laplace.shards import load_checked, save_checked

SAVE_EVERY = 60.0  # seconds between two writings of the sums
_TAKEN = "batches_taken"


def accumulate(
    accumulators: Iterable[Accumulator],
    model: AnswerModel,
    batches: Callable[[int], Iterable[Any]],
    folder: Path | None,
    key: str,
    save_every: float = SAVE_EVERY,
) -> Accumulator:
    """Run passes one after another, each on all batches, and give back the last.

    After every batch the sums on disk, if any, are at most ``save_every`` seconds old; what is on disk is not computed
    again, and a pass goes on bit for bit.

    Args:
        accumulators: The passes; each is asked for when the one before has seen all batches.
        model: The model.
        batches: Number of a pass to its batches on the model's device, always in the same order.
        folder: Where the sums are kept; None keeps them in memory.
        key: Tells weights, data and options from others.
        save_every: Seconds.

    Raises:
        UsageError: sums on disk that are damaged or belong to another key.
    """
    for number, accumulator in enumerate(accumulators):
        file = None if folder is None else folder / f"pass-{number}.safetensors"
        taken = 0
        if file is not None and file.exists():
            state = load_checked(file, key)
            taken = int(state.pop(_TAKEN))
            accumulator.load_state_dict(state)
        started, saved = monotonic(), taken
        for index, batch in enumerate(batches(number)):
            if index < taken:
                continue
            accumulator.update(model, batch)
            taken = index + 1
            if file is not None and monotonic() - started >= save_every:
                _save(file, accumulator, taken, key)
                started, saved = monotonic(), taken
        if file is not None and taken > saved:
            _save(file, accumulator, taken, key)
    return accumulator


def _save(file: Path, accumulator: Accumulator, taken: int, key: str) -> None:
    save_checked(file, {**accumulator.state_dict(), _TAKEN: torch.tensor(taken, device="cpu")}, key)
