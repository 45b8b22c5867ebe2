"""Our training through the real trainer, in turns with the plain loop."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers import CSVLogger
from measure import Round, spread

from bayeslora.datamodules.encode import Encoded
from bayeslora.datamodules.loader import AnswerLoader
from bayeslora.datamodules.rows import Rows
from bayeslora.datamodules.sampler import TrainBatches
from bayeslora.lightning_modules.lora import LoRAModule


def loader_of(encoded: Sequence[Encoded], batch_size: int) -> AnswerLoader:
    """Bucketed training batches of encoded questions, as the DataModules make them."""
    rows = Rows([[item] for item in encoded])
    return AnswerLoader(rows, TrainBatches(rows.lengths, batch_size, seed=0), "train", "left", pad_id=0)


def fit(module: LoRAModule, steps: int, device: torch.device, callbacks: list[Callback], **data: Any) -> None:
    """Train for so many steps; logs as the command line does, and neither validates nor saves nor draws bars.

    Args:
        module: What is trained.
        steps: Optimiser steps.
        device: On a GPU, precision is the package's default there.
        callbacks: What measures.
        **data: ``datamodule`` or ``train_dataloaders``.
    """
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            accelerator="gpu" if device.type == "cuda" else "cpu",
            devices=1,
            precision="bf16-mixed" if device.type == "cuda" else "32-true",
            max_steps=steps,
            max_epochs=-1,
            limit_val_batches=0,
            logger=CSVLogger(folder),
            callbacks=callbacks,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
            default_root_dir=folder,
        )
        trainer.fit(module, **data)


def rates(name: str, rounds: Sequence[Round]) -> str:
    """One contestant's numbers in a line."""
    step = spread([1000 * r.seconds / r.steps for r in rounds], 0)
    examples = spread([r.examples / r.seconds for r in rounds])
    tokens = spread([r.tokens / r.seconds for r in rounds], 0)
    padded = sum(r.cells for r in rounds) / sum(r.examples for r in rounds)
    peak = max(r.peak for r in rounds) / 2**30
    memory = f", peak {peak:.2f} GiB" if peak else ""
    return (
        f"  {name}: {step} ms a batch, {examples} examples/s, {tokens} tokens/s "
        f"({padded:.0f} tokens an example with padding){memory}"
    )


def throughput(rounds: Sequence[Round]) -> list[float]:
    """Examples per second of each round."""
    return [r.examples / r.seconds for r in rounds]
