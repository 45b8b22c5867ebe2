"""Passes over the data that leave their sums on disk, where a pass that was killed goes on."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from time import monotonic
from typing import Any

import torch

from bayeslora.curvature.ranks import Ranks
from bayeslora.curvature.structures import Accumulator
from bayeslora.models.answer_model import AnswerModel
from bayeslora.posteriors.laplace.shards import load_checked, save_checked

SAVE_EVERY = 60.0  # seconds between two writings of the sums
_TAKEN, _BEFORE = "batches_taken", "batches_before"


def accumulate(
    accumulators: Iterable[Accumulator],
    model: AnswerModel,
    batches: Callable[[int], Iterable[Any]],
    folder: Path | None,
    key: str,
    save_every: float = SAVE_EVERY,
    ranks: Ranks | None = None,
) -> Accumulator:
    """Run passes one after another, each on all batches, and give back the last.

    After every batch the sums on disk, if any, are at most ``save_every`` seconds old; what is on disk is not computed
    again, and a pass goes on bit for bit. Where several processes fit together, each has a file of its own until a pass
    has ended, and the sums of all of them are those of the pass.

    Args:
        accumulators: The passes; each is asked for when the one before has seen all batches.
        model: The model.
        batches: Number of a pass to its batches on the model's device, always in the same order.
        folder: Where the sums are kept; None keeps them in memory.
        key: Tells weights, data and options from others.
        save_every: Seconds.
        ranks: The processes that fit together; None for this one alone.

    Raises:
        UsageError: sums on disk that are damaged or belong to another key.
        RunError: another process has failed.
    """
    ranks = ranks or Ranks()
    for number, accumulator in enumerate(accumulators):
        file = None if folder is None else folder / f"pass-{number}.safetensors"
        own = file if file is None or ranks.world == 1 else file.with_stem(f"{file.stem}-{ranks.rank}-of-{ranks.world}")
        with ranks.together():
            before, taken = _begin(accumulator, file, own, key, ranks.rank)
            started, saved = monotonic(), taken
            for index, batch in ranks.own(batches(number)):
                if index < taken:
                    continue
                accumulator.update(model, batch)
                taken = index + 1
                if own is not None and monotonic() - started >= save_every:
                    _save(own, accumulator, taken, before, key)
                    started, saved = monotonic(), taken
        if ranks.world > 1:
            accumulator.load_state_dict(ranks.add(accumulator.state_dict()))
            taken, saved = max(ranks.gather(taken)), before
        with ranks.together():
            if file is not None and taken > saved and ranks.rank == 0:
                _save(file, accumulator, taken, before, key)
        if own is not None and own != file:
            own.unlink(missing_ok=True)
    return accumulator


def _begin(accumulator: Accumulator, file: Path | None, own: Path | None, key: str, rank: int) -> tuple[int, int]:
    """Take up the sums on disk: how many batches those of all processes hold, and up to which this one has come."""
    before = taken = 0
    if file is not None and file.exists():
        state = load_checked(file, key)
        before = taken = int(state.pop(_TAKEN))
        state.pop(_BEFORE, None)
        if rank == 0:  # the sums of all are one summand
            accumulator.load_state_dict(state)
    if own is not None and own != file and own.exists():
        state = load_checked(own, key)
        come, since = int(state.pop(_TAKEN)), int(state.pop(_BEFORE))
        if since == before:  # else it is in the sums of all by now
            taken = come
            accumulator.load_state_dict(state)
    return before, taken


def _save(file: Path, accumulator: Accumulator, taken: int, before: int, key: str) -> None:
    """Keep the sums, up to which batch they go, and how many of these had been in the sums of all processes before."""
    numbers = {_TAKEN: torch.tensor(taken, device="cpu"), _BEFORE: torch.tensor(before, device="cpu")}
    save_checked(file, {**accumulator.state_dict(), **numbers}, key)
