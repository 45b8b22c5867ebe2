"""When SWAG begins to collect: a number or a fraction of a run, in whole epochs or optimiser steps."""

from __future__ import annotations

import math

import lightning as L

from bayeslora.callbacks.schedule import Schedule, Steps, install
from bayeslora.errors import UsageError


def collection_start(trainer: L.Trainer, start: int | float, every: int, unit: str, schedule: Schedule | None) -> int:
    """The unit from which snapshots are taken; the schedule that belongs to it, where there is one, is put in place.

    Args:
        trainer: Of the run, when ``fit`` has begun.
        start: A number of units, or a fraction of the run.
        every: Units between two snapshots.
        unit: ``epoch`` or ``step``.
        schedule: Course of the learning rate; None leaves the module's.

    Raises:
        UsageError: a start after the last unit, or a fraction or a schedule of a run whose length is not known.
    """
    if isinstance(start, float) and unit == "step" and len(trainer.optimizers) > 1:
        raise UsageError(
            f"SWAG's start is the fraction {start} of a run whose {len(trainer.optimizers)} optimisers are stepped by "
            "hand, so that its number of steps is not known; give start as a number of steps, or unit epoch"
        )
    epoch = math.ceil(trainer.num_training_batches / trainer.accumulate_grad_batches) if _is_sized(trainer) else 0
    units = _units(trainer, unit, epoch)
    if (isinstance(start, float) and units == math.inf) or (schedule is not None and not epoch):
        raise UsageError("SWAG's schedule or fraction needs the length of the run; give max_epochs and sized data")
    first = int(start * units) if isinstance(start, float) else start
    if first + (unit == "epoch") > units and not trainer.fast_dev_run:  # type: ignore[attr-defined]
        whole = "unit step, the run ends within its first epoch" if units == 0 else "an earlier start"
        other = "" if isinstance(start, float) or units == 0 else ", or a fraction of the run such as 0.5"
        raise UsageError(
            f"SWAG would start to collect at {unit} {start}, but the run has {units:.0f} whole {unit}s; give "
            f"{whole}{other}"
        )
    if schedule is not None:
        total, per = int(trainer.estimated_stepping_batches), epoch if unit == "epoch" else 1
        install(trainer, schedule, Steps(total, first * per, epoch, every * per, epoch if unit == "epoch" else 0))
    return first


def _is_sized(trainer: L.Trainer) -> bool:
    """Whether it is known how many steps an epoch and the run have."""
    return math.isfinite(trainer.estimated_stepping_batches) and math.isfinite(trainer.num_training_batches)


def _units(trainer: L.Trainer, unit: str, epoch: int) -> float:
    """Whole units of the run, infinite where that is not known; an epoch of no steps is one of unknown length."""
    if unit == "step":  # of several optimisers the trainer counts every one's, and does not know which are stepped when
        return trainer.estimated_stepping_batches if len(trainer.optimizers) == 1 else math.inf
    if epoch:
        return trainer.estimated_stepping_batches // epoch
    return math.inf if trainer.max_epochs in (None, -1) else trainer.max_epochs or 0
