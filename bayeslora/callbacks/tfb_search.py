"""What TFB's search measures on its anchor questions, and what it keeps of that while it goes on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities import move_data_to_device
from torch import Tensor

from bayeslora.errors import UsageError
from bayeslora.files import read_record, write_record
from bayeslora.lightning_modules.multiple_choice import MultipleChoiceModule
from bayeslora.lightning_modules.prediction_path import Predict
from bayeslora.lightning_modules.progress import tracked
from bayeslora.types import Predictive


class Anchors:
    """Questions with the labels that the adapter itself gives them, and the loss of a prediction on them."""

    def __init__(self, trainer: L.Trainer, pl_module: L.LightningModule, batches: list[Any]) -> None:
        self._trainer, self._reduce = trainer, trainer.strategy.reduce
        self._device = pl_module.device
        self._batches = batches
        self._labels: list[Tensor] = []
        self.plain_loss, self.count = 0.0, 0

    def label(self, predict: Predict) -> None:
        """Take the most probable option of every question for its label."""
        plain = list(self._predictions(predict))
        self._labels = [predictive.log_mean.argmax(-1) for predictive in plain]
        count = torch.tensor(float(sum(map(len, self._labels))), device=self._device)
        self.count = int(self._reduce(count, reduce_op="sum"))
        if self.count == 0:
            raise UsageError("TFB has no anchor questions; give the data a training or validation split")
        self.plain_loss = self._mean(plain)

    def loss(self, predict: Predict, what: str) -> float:
        """Mean negative log-likelihood of the labels, over all processes.

        Args:
            predict: What answers a batch.
            what: What it is for, which the progress bar says.
        """
        return self._mean(self._predictions(predict, what))

    def _mean(self, predictives: Iterable[Predictive]) -> float:
        losses = [p.nll(label).sum() for p, label in zip(predictives, self._labels, strict=True)]
        total = torch.stack(losses).sum() if losses else torch.zeros((), dtype=torch.float64, device=self._device)
        return float(self._reduce(total, reduce_op="sum")) / self.count

    def _predictions(self, predict: Predict, what: str = "TFB, the adapter itself") -> Iterator[Predictive]:
        for batch in tracked(self._trainer, self._batches, what):
            yield predict(move_data_to_device(batch, self._device))


class Tried:
    """What was measured of each sigma, kept in ``<run folder>/tfb/<key>.json``, where a search that was killed goes on.

    Several processes, which must go through the same passes, and modules of other packages keep it in memory.
    """

    def __init__(self, trainer: L.Trainer, pl_module: L.LightningModule, key: str) -> None:
        here = trainer.world_size == 1 and isinstance(pl_module, MultipleChoiceModule) and not trainer.fast_dev_run  # type: ignore[attr-defined]
        self._file = Path(trainer.default_root_dir) / "tfb" / f"{key}.json" if here else None
        self._changes: dict[str, float] = {}
        if self._file is not None and self._file.exists():
            self._changes = read_record(self._file, "remove it, it is measured again")["changes"]

    @property
    def passes(self) -> int:
        """How many have been made."""
        return len(self._changes)

    def get(self, sigma: float | Mapping[str, float], measure: Callable[[], float]) -> float:
        """The change at a sigma, measured where it is not known.

        Args:
            sigma: One for all sites, or one by name.
            measure: What finds the change.
        """
        name = repr(dict(sigma) if isinstance(sigma, Mapping) else sigma)
        if name not in self._changes:
            self._changes[name] = measure()
            if self._file is not None:
                write_record(self._file, {"changes": self._changes})
        return self._changes[name]
