"""Collects what every batch is predicted to be and writes it to one file, from which every metric follows."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from bayeslora.callbacks.attached import Attached, LabelFn
from bayeslora.callbacks.collected import Collected
from bayeslora.callbacks.temperature import Temperature
from bayeslora.decisions.rule_file import FILE as RULE
from bayeslora.errors import UsageError
from bayeslora.files import PREDICTION_FILE
from bayeslora.lightning_modules.prediction_path import LogitsFn, owners, prediction_path
from bayeslora.metrics.answers import UNKNOWN, Answers
from bayeslora.metrics.calibration import ECE
from bayeslora.metrics.evaluate import FLOOR_BINS, TEMPERATURE
from bayeslora.metrics.means import NLL, Accuracy, Brier
from bayeslora.types import AnswerBatch, Predictive


class Predictions(Attached):
    """Writes ``test/predictions.parquet`` (or ``predict/predictions.parquet``), every question once and in order.

    It is the one reader of what ``test_step`` and ``predict_step`` return: a ``Predictive``, or a dict with one under
    "predictive". Where they return anything else, the batch is run again through the prediction path of the module,
    for which a module of another kind needs ``logits_fn``. The names of the questions and their true probabilities come
    from ``questions(dataset)[row]`` of the datamodule, where it has that method. ``trainer.test`` returns accuracy,
    NLL, Brier score and ECE of every dataset whose labels are known; :class:`Report` gives everything else.

    Args:
        directory: Folder of the file; None for ``<default_root_dir>/test`` and ``<default_root_dir>/predict``.
        overwrite: Replace results that are already there.
        logits_fn: For modules that are not of this package: ``(module, batch)`` to logits ``[B, C]``.
        label_fn: For batches that are not of this package: batch to labels ``[B]``; None where they are not known.
        id_fn: Likewise: batch to row numbers ``[B]``; None counts the questions, which only one process can.
        datasets: Likewise: the name of each dataloader's dataset; None for ``test``, ``test_1``, ``test_2`` and so on.
        method: Name of the method; None takes the module's ``method`` (or the name of its class) and those of the
            callbacks on its prediction path: ``mle+temperature``.

    Example:
        >>> import lightning as L
        >>> from bayeslora import Predictions
        >>> trainer = L.Trainer(callbacks=[Predictions(overwrite=True)], logger=False, accelerator="cpu")
    """

    def __init__(
        self,
        directory: str | Path | None = None,
        overwrite: bool = False,
        logits_fn: LogitsFn | None = None,
        label_fn: LabelFn | None = None,
        id_fn: Callable[[Any], Tensor] | None = None,
        datasets: Sequence[str] | None = None,
        method: str | None = None,
    ) -> None:
        self.directory, self.overwrite = directory, overwrite
        self.logits_fn, self.label_fn, self.id_fn = logits_fn, label_fn, id_fn
        self.datasets, self.method = datasets, method
        self.names: list[str] = []  # of the datasets of this stage, loader by loader
        self.file: Path | None = None  # where this stage's predictions go
        self._collected = self._new()

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Refuse to overwrite results, before anything is loaded or computed.

        Raises:
            UsageError: If the folder holds files and ``overwrite`` is off.
        """
        if stage not in (TrainerFn.TESTING, TrainerFn.PREDICTING):
            return
        default = Path(trainer.default_root_dir) / TrainerFn(stage).value
        folder = default if self.directory is None else Path(self.directory)
        if not self.overwrite and folder.is_dir() and any(folder.iterdir()):
            raise UsageError(f"{folder} already holds results; give Predictions another directory, or overwrite=True")
        self.file = folder / PREDICTION_FILE
        self._collected = self._new()

    def on_test_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Name the datasets; remove the decision rule of an earlier test, which would be that of other predictions.

        Raises:
            UsageError: other than one name for each loader.
        """
        self.names = self._dataset_names(trainer)
        if trainer.is_global_zero and self.file is not None:
            (self.file.parent / RULE).unlink(missing_ok=True)

    on_predict_start = on_test_start

    def on_test_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keep the predictions of a batch, see :meth:`Collected.add`."""
        predictive = outputs.get("predictive") if isinstance(outputs, dict) else outputs
        if not isinstance(predictive, Predictive):
            predictive = prediction_path(pl_module, self.logits_fn)(batch)
        dataset = "" if isinstance(batch, AnswerBatch) else self.names[dataloader_idx]
        self._collected.add(trainer, predictive, batch, dataset, dataloader_idx)

    def on_test_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write the file, see :meth:`write`; log the headline numbers, which ``trainer.test`` returns."""
        datasets = self.write(trainer, pl_module)
        pl_module.log_dict(_headline(datasets, _temperature(trainer)), sync_dist=True)

    def write(self, trainer: L.Trainer, pl_module: L.LightningModule) -> dict[str, Answers]:
        """Gather what all ranks predicted, put it in order, and write the file on rank 0.

        Args:
            trainer: The trainer that runs the evaluation.
            pl_module: Its module.

        Returns:
            The answers of every dataset.

        Raises:
            RunError: If a question was met twice, or not at all.
        """
        from bayeslora.results import prediction_file  # pyarrow takes its time to load

        assert self.file is not None  # set up
        datasets, self._collected = self._collected.answers(trainer), self._new()
        method = self.method or method_of(pl_module)
        if trainer.is_global_zero:
            (self.file.parent / "metrics.json").unlink(missing_ok=True)  # they would be those of other predictions
            prediction_file.write_predictions(
                prediction_file.PredictionFile(datasets, method, _seed(pl_module), _temperature(trainer)), self.file
            )
        trainer.strategy.barrier("predictions")
        return datasets

    on_predict_batch_end = on_test_batch_end

    def on_predict_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write the file, see :meth:`write`."""
        self.write(trainer, pl_module)

    def _dataset_names(self, trainer: L.Trainer) -> list[str]:
        batches = trainer.num_predict_batches if trainer.predicting else trainer.num_test_batches
        if self.datasets is None:
            return ["test" if place == 0 else f"test_{place}" for place in range(len(batches))]
        names = list(self.datasets)
        if len(names) != len(batches) or len(set(names)) != len(names):
            given = ", ".join(names)
            raise UsageError(
                f"Predictions' datasets are {given}; allowed: a name of its own for each of {len(batches)} loaders"
            )
        return names

    def _new(self) -> Collected:
        return Collected(self.label_fn, self.id_fn)


def method_of(pl_module: L.LightningModule) -> str:
    """The module's method, then the callbacks on its prediction path: ``mle+swag+temperature``."""
    base = str(getattr(pl_module, "method", type(pl_module).__name__))
    return "+".join([base, *(owner.lower() for owner in owners(pl_module))])


def _headline(datasets: Mapping[str, Answers], temperature: float | None) -> dict[str, Tensor]:
    """The numbers that ``trainer.test`` returns, under the names that loggers know from :class:`Report`."""
    found = {} if temperature is None else {TEMPERATURE: torch.tensor(temperature, device="cpu")}
    for name, answers in datasets.items():
        if not bool((answers.label == UNKNOWN).any()):
            numbers = {"accuracy": Accuracy(), "nll": NLL(), "brier": Brier(), f"ece_{FLOOR_BINS}": ECE(FLOOR_BINS)}
            found |= {f"test/{name}/{key}": metric(answers.probs, answers.label) for key, metric in numbers.items()}
    return {key: value.float() for key, value in found.items()}


def _temperature(trainer: L.Trainer) -> float | None:
    """The temperature that was fitted for this evaluation; None without one."""
    fitted = (c.temperature for c in trainer.callbacks if isinstance(c, Temperature))  # type: ignore[attr-defined]
    return next(fitted, None)


def _seed(pl_module: L.LightningModule) -> int | None:
    """The module's seed, or the one given to ``seed_everything``."""
    seed = getattr(pl_module, "seed", os.environ.get("PL_GLOBAL_SEED"))
    return None if seed is None else int(seed)
