"""Where in the data a run is: what a checkpoint keeps of it, and what must not have changed on resuming."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bayeslora.errors import UsageError


def position(trainer: Any) -> tuple[int, int]:
    """Epoch and number of batches taken in it; the end of an epoch is the start of the next."""
    epoch, taken = divmod(trainer.fit_loop.epoch_loop.batch_progress.total.processed, trainer.fit_loop.max_batches)
    return int(epoch), int(taken)  # floats before there is any training data


def refuse_changes(saved: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Check that the order of the data is still the one of the checkpoint.

    Args:
        saved: What the checkpoint keeps of the order of the data.
        now: The same for the run that goes on.

    Raises:
        UsageError: what has changed.
    """
    for name, value in now.items():
        if saved[name] != value:
            raise UsageError(
                f"cannot resume: {name} is {value!r} and was {saved[name]!r} in the checkpoint; give the same data "
                "arguments, or start a new run"
            )


def order_depends_on(data: Any) -> dict[str, Any]:
    """What the order of the training questions depends on, as plain values.

    Args:
        data: The DataModule.
    """
    processes = 1 if data.trainer is None else data.trainer.world_size
    return {
        "protocol": data.protocol.saved(),
        "seed": data.seed,
        "batch_size": data.batch_size,
        "processes": processes,
        "members": list(data.members),
        "shuffle_options": data.shuffle_options,
        "shots": data.shots,
        "chat": data.chat,
        "training questions": len(data.train_questions),
        "fingerprint": data.fingerprint,
    }
