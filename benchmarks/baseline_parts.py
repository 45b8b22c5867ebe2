"""What ``baselines.py`` adds to a trainer: labels divided otherwise, an early end, and the two predictions of a row."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor

from bayeslora.callbacks.predictions import Predictions
from bayeslora.callbacks.temperature import fit_temperature
from bayeslora.datamodules.question import Question
from bayeslora.datamodules.synthetic import SyntheticDataModule
from bayeslora.lightning_modules.prediction_path import prediction_path
from bayeslora.types import Predictive

FOLDS = 5


class Labels(SyntheticDataModule):
    """The labels of a seed, divided otherwise than in four fifths and one.

    Args:
        fold: Which of five folds validates; None trains on all labels.
        kwargs: See :class:`SyntheticDataModule`.
    """

    def __init__(self, fold: int | None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.fold = fold

    def questions(self, name: str) -> list[Question]:
        """The questions of a part or a test set."""
        if name not in ("train", "validation"):
            return super().questions(name)
        pool = sorted(super().questions("train") + super().questions("validation"), key=lambda question: question.id)
        held = [] if self.fold is None else pool[self.fold :: FOLDS]
        return held if name == "validation" else [question for question in pool if question not in held]


class StopAt(L.Callback):
    """Ends a training after so many optimiser steps, its learning rate being that of a longer one."""

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        """Stop where it is time to."""
        trainer.should_stop = trainer.should_stop or trainer.global_step >= self.steps


class Curve(L.Callback):
    """What the weights predict for the validation questions, validation by validation."""

    def __init__(self) -> None:
        self.seen: list[Predictive] = []
        self.label = torch.empty(0)

    def on_validation_batch_end(self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, *_: Any) -> None:
        """All of them are one batch."""
        self.seen.append(pl_module.sampled(batch))
        self.label = batch.label


class Outcome(L.Callback):
    """Writes what a row predicts, as it is and with a temperature.

    Args:
        folders: Run folders of the row and of the row with a temperature.
        record: What ``run.json`` says; temperature and validation NLL are added to it.
        temperature: Where it is not to be fitted on the validation questions.
    """

    def __init__(self, folders: Sequence[Path], record: dict[str, Any], temperature: float | None = None) -> None:
        self.folders, self.record, self.temperature = folders, record, temperature
        self.files = [
            Predictions(folder / "test", overwrite=True, method=folder.parent.name) for folder in self.folders
        ]

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Set up the files."""
        for file in self.files:
            file.setup(trainer, pl_module, stage)

    def on_test_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        """Before the first batch, when every posterior is in its place: predict the validation questions."""
        if "temperature" in self.record:
            return
        temperature = self.temperature
        if temperature is None:
            path, batches = prediction_path(pl_module), list(trainer.datamodule.val_dataloader())  # type: ignore[attr-defined]
            found, labels = [path.untransformed(batch) for batch in batches], [batch.label for batch in batches]
            temperature = fit_temperature(found, labels)
            self.record["validation_nll"] = mean_nll(found, labels)
            self.record["validation_nll_tempered"] = mean_nll([p.tempered(temperature) for p in found], labels)
        self.record["temperature"] = temperature

    def on_test_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Both predictions of a batch."""
        tempered = outputs.tempered(self.record["temperature"])
        for file, predictive in zip(self.files, (outputs, tempered), strict=True):
            file.on_test_batch_end(trainer, pl_module, predictive, batch, batch_idx, dataloader_idx)

    def on_test_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write the files, and last what says that they are whole."""
        for file, folder in zip(self.files, self.folders, strict=True):
            file.on_test_epoch_end(trainer, pl_module)
            (folder / "run.json").write_text(json.dumps(self.record, indent=1))


def mean_nll(found: Sequence[Predictive], labels: Sequence[Tensor]) -> float:
    """Mean NLL over the questions of all batches, in nats."""
    return torch.cat([p.nll(y) for p, y in zip(found, labels, strict=True)]).mean().item()


def trainer_of(callbacks: list[L.Callback], **options: Any) -> L.Trainer:
    """A trainer that is quiet, on the CPU, with these callbacks."""
    return L.Trainer(
        accelerator="cpu",
        callbacks=callbacks,
        logger=False,
        enable_checkpointing=any(isinstance(callback, ModelCheckpoint) for callback in callbacks),
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        inference_mode=False,  # Laplace's precision is chosen with gradients
        num_sanity_val_steps=0,
        **options,
    )
