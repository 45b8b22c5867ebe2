"""What a checkpoint keeps of a run that it may have cut inside an optimiser step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor


def unfinished_gradients(trainer: Any, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What micro-batches have added up to since the last optimiser step, which a resumed run would lack.

    Several processes save their mean: the optimiser sees the mean over processes too.

    Args:
        trainer: The trainer that runs.
        parameters: The trainable parameters by name.
    """
    ready = trainer.fit_loop.epoch_loop.batch_progress.current.ready
    stepped = ready % trainer.accumulate_grad_batches == 0 or ready >= trainer.num_training_batches
    if stepped:
        return {}
    gradients = {name: p.grad for name, p in parameters.items() if p.grad is not None}
    return {name: trainer.strategy.reduce(grad.clone(), reduce_op="mean") for name, grad in gradients.items()}


def run_length(trainer: Any) -> dict[str, float]:
    """What schedules of rates and of divergences are derived from.

    Args:
        trainer: The trainer that runs.
    """
    return {
        "optimiser steps": float(trainer.estimated_stepping_batches),
        "accumulate_grad_batches": float(trainer.accumulate_grad_batches),
    }
