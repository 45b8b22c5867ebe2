"""What a checkpoint keeps of a run that it may have cut inside an optimiser step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from bayeslora.datamodules.loader import AnswerLoader


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


def places_in_data(checkpoint: Mapping[str, Any]) -> list[dict[str, int]]:
    """Where the training loaders were, as the trainer keeps it; nothing in checkpoints of before.

    Args:
        checkpoint: As the trainer wrote it.
    """
    loop: Any = checkpoint.get("loops", {}).get("fit_loop", {})
    return list(loop.get("state_dict", {}).get("combined_loader", []))


def take_up(
    trainer: Any, parameters: Mapping[str, Tensor], gradients: Mapping[str, Tensor], places: list[dict[str, int]]
) -> None:
    """Go on where a checkpoint stopped: with its unfinished gradients, and where its loaders were.

    Loaders of a DataModule know that by now. The trainer tells others only where it has not built them before it read
    the checkpoint, as it does for the length of the run.

    Args:
        trainer: The trainer that runs.
        parameters: The trainable parameters by name.
        gradients: What :func:`unfinished_gradients` gave.
        places: What :func:`places_in_data` gave.
    """
    for name, gradient in gradients.items():
        parameters[name].grad = gradient.to(parameters[name].device)
    loaders = trainer.train_dataloader
    for loader, place in zip(loaders if isinstance(loaders, list) else [loaders], places, strict=False):
        if isinstance(loader, AnswerLoader):
            loader.load_state_dict(place)


def run_length(trainer: Any) -> dict[str, float]:
    """What schedules of rates and of divergences are derived from.

    Args:
        trainer: The trainer that runs.
    """
    return {
        "optimiser steps": float(trainer.estimated_stepping_batches),
        "accumulate_grad_batches": float(trainer.accumulate_grad_batches),
    }
