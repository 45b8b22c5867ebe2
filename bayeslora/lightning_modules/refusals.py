"""What no module or callback of the package goes on with: weights in shards or of others, numbers not finite."""

from __future__ import annotations

from collections.abc import Mapping

import lightning as L
import torch
from torch import Tensor

from bayeslora.errors import RunError, UsageError
from bayeslora.types import AnswerBatch

_SHARDING = ("FSDP", "DeepSpeed", "ModelParallel")


def refuse_shards(trainer: L.Trainer, what: str) -> None:
    """Refuse strategies that shard weights among processes.

    Args:
        trainer: Whose strategy it is.
        what: Who needs whole weights.

    Raises:
        UsageError: FSDP, DeepSpeed or model parallelism.
    """
    strategy = type(trainer.strategy).__name__
    if any(kind in strategy for kind in _SHARDING):
        raise UsageError(
            f"{what} needs whole weights, strategy {strategy} shards them; allowed: a single device or ddp, with 4bit "
            "for a large base"
        )


def refuse_several_tokens(trainer: L.Trainer, what: str) -> None:
    """Refuse labels of several tokens where something needs the one position that predicts the answer.

    Args:
        trainer: Whose data they are.
        what: What needs that position.

    Raises:
        UsageError: the data's protocol has such labels.
    """
    protocol = getattr(getattr(trainer, "datamodule", None), "protocol", None)
    if getattr(protocol, "end", None) is not None:
        raise UsageError(
            f"{what} needs labels of one token each; give the protocol words of one token (end: null), or leave it out"
        )


def stop_at_nan(value: Tensor, batch: AnswerBatch, what: str) -> None:
    """End the run where a value computed from a batch is not finite.

    Args:
        value: The value.
        batch: The questions it is of.
        what: What the message calls it.

    Raises:
        RunError: it is not finite; the message names the dataset and the rows.
    """
    if not torch.isfinite(value).all():
        ids = batch.example_id.tolist()
        raise RunError(f"{what} is not finite on dataset {batch.dataset}, rows {ids}; lower the learning rate or dtype")


def check_parameters(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    """Refuse a checkpoint whose parameters are not the model's, by name and by shape.

    Args:
        found: The checkpoint's.
        wanted: The model's.

    Raises:
        UsageError: naming what is missing, unexpected or of another shape.
    """
    missing = [name for name in wanted if name not in found]
    unexpected = [name for name in found if name not in wanted]
    if missing or unexpected:
        raise UsageError(
            f"the checkpoint does not fit: {len(missing)} parameters missing ({missing[:1]}), {len(unexpected)} "
            f"unexpected ({unexpected[:1]}); give lora.target_modules and readout as they were in training",
        )
    for name, parameter in wanted.items():
        if found[name].shape != parameter.shape:
            raise UsageError(
                f"the checkpoint's {name} has shape {list(found[name].shape)}, this model's {list(parameter.shape)}; "
                "give lora.r as it was in training",
            )
