"""Learning rates for weight averaging as a closed form of the step, so that a resumed run needs no state for them."""

from __future__ import annotations

from dataclasses import dataclass

import lightning as L
from lightning.pytorch.utilities.types import LRSchedulerConfig
from torch.optim.lr_scheduler import LambdaLR

from bayeslora.errors import UsageError, require_choice

HALF = 0.5
KINDS = ("anneal", "constant", "cyclic", "linear")


@dataclass(frozen=True)
class Schedule:
    """The learning rate of a run whose weights are averaged from some step on.

    Attributes:
        kind: From the first averaged step: ``anneal`` moves linearly to ``swa_lr`` and stays there (the release),
            ``constant`` is there at once, ``cyclic`` falls to it from the rate at the start, once per snapshot;
            ``linear`` averages while the rate goes on falling to zero.
        swa_lr: The rate to come to; None for half of the optimiser's, where a linear decay is in the middle of a run.
        warmup: Fraction of all steps over which the rate rises from zero; it then falls linearly, towards zero at the
            last step.
        anneal_epochs: Length of ``anneal``.

    Example:
        >>> from bayeslora import SWAG, Schedule
        >>> swag = SWAG(start=0.5, schedule=Schedule("constant", swa_lr=1e-4))
    """

    kind: str = "anneal"
    swa_lr: float | None = None
    warmup: float = 0.06
    anneal_epochs: float = 5.0

    def __post_init__(self) -> None:
        """Check what a user can get wrong."""
        require_choice("schedule.kind", self.kind, KINDS)
        if self.swa_lr is not None and not self.swa_lr > 0:
            raise UsageError(f"schedule.swa_lr is {self.swa_lr}; allowed: above 0, or none for half the peak")
        if not 0 <= self.warmup < 1:
            raise UsageError(f"schedule.warmup is {self.warmup}; allowed: a fraction of all steps, 0 to below 1")


@dataclass(frozen=True)
class Steps:
    """A run counted in optimiser steps.

    Attributes:
        total: Steps of the run.
        start: Steps before the averaged ones.
        epoch: Steps of an epoch.
        cycle: Steps between two snapshots.
        first: Steps from ``start`` to the first snapshot.
    """

    total: int
    start: int
    epoch: int
    cycle: int
    first: int


def swag_schedule(step: int, schedule: Schedule, steps: Steps, peak: float) -> float:
    r"""Learning rate at a step, as a factor on the peak.

    With T steps in all, warm-up w T and :math:`\lambda(t) = t / wT` below that, :math:`(T - t) / (T - wT)` above, the
    rate is :math:`\lambda(t)` up to the first averaged step :math:`t_0`; from there, k steps on, ``anneal`` is

    .. math:: (1 - a) \lambda(t_0) + a \frac{\mathrm{swa\_lr}}{\mathrm{peak}}, \quad a = \min(1, k / k_{anneal}).

    Args:
        step: Optimiser steps so far, t.
        schedule: Its shape.
        steps: The run it belongs to.
        peak: The optimiser's own learning rate.
    """
    if step < steps.start or schedule.kind == "linear":
        return _linear(step, schedule.warmup, steps.total)
    after, high = step - steps.start, _linear(steps.start, schedule.warmup, steps.total)
    if schedule.kind == "cyclic":
        share = ((after - steps.first) % steps.cycle + 1) / steps.cycle  # lowest at the step before a snapshot
    else:
        length = schedule.anneal_epochs * steps.epoch if schedule.kind == "anneal" else 0
        share = min(1.0, after / length) if length > 0 else 1.0
    low = HALF if schedule.swa_lr is None else schedule.swa_lr / peak
    return (1 - share) * high + share * low


def install(trainer: L.Trainer, schedule: Schedule, steps: Steps) -> None:
    """Replace the module's learning rate schedule, before a checkpoint's state is restored into it.

    Args:
        trainer: The trainer of the run.
        schedule: The course of the learning rate.
        steps: How many steps and epochs the run has.

    Raises:
        UsageError: several optimisers, or a module that steps them by hand.
    """
    module = trainer.lightning_module
    if len(trainer.optimizers) != 1 or not module.automatic_optimization:
        raise UsageError(
            f"{type(module).__name__} has {len(trainer.optimizers)} optimisers or steps them by hand; a schedule needs "
            "one stepped by the trainer: leave schedule out and set the rates in the module"
        )
    optimizer = trainer.optimizers[0]
    for group in optimizer.param_groups:
        group["lr"] = group.setdefault("initial_lr", group["lr"])  # what an earlier scheduler found
    peak = float(optimizer.param_groups[0]["initial_lr"])
    scheduler = LambdaLR(optimizer, lambda step: swag_schedule(step, schedule, steps, peak))
    trainer.strategy.lr_scheduler_configs = [LRSchedulerConfig(scheduler, interval="step")]


def _linear(step: int, warmup: float, total: int) -> float:
    rising = warmup * total
    return step / rising if step < rising else max(0.0, (total - step) / max(total - rising, 1.0))
