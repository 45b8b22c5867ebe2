"""Follows what a method predicts, and how far its members are apart, from the base model on through every epoch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.fabric.utilities import move_data_to_device
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor

from bayeslora.callbacks.fit_key import tensors_digest
from bayeslora.callbacks.posterior import weight_sets
from bayeslora.callbacks.predictions import Predictions
from bayeslora.datamodules.multiple_choice import VALIDATION, MultipleChoiceDataModule
from bayeslora.errors import UsageError
from bayeslora.files import read_record, write_record
from bayeslora.lightning_modules.prediction_path import LogitsFn, prediction_path
from bayeslora.models.in_place import evaluation_mode
from bayeslora.posteriors.products import cosine, product_gram
from bayeslora.types import CONTRACT_VERSION

FOLDER = "dynamics"
_REMEDY = "remove it and the epochs after it, which are evaluated again"
Loaders = Mapping[str, Any]  #: Name of a set of questions to what gives its batches.


class Dynamics(L.Callback):
    """Writes member predictions for every evaluation set before training and after every epoch.

    Epoch 0 is what training starts from: the base model, since LoRA's B is zero. ``epoch-003.parquet`` holds what is
    predicted after three epochs, in the format of ``predictions.parquet`` (members, their logits and log-sum-exp where
    the module keeps them); ``epoch-003.json`` the optimiser step, the members' ids, a digest of the weights and the
    inner products of the members' low-rank updates BA, see :func:`product_gram`. ``bayeslora dynamics RUN`` makes
    tables and plots of them without the model.

    Training is what it would be without: weights, noise and the global random state are left alone. A resumed run
    goes on where it was: an epoch on file that was made with the very weights the run now has is not made again. If the
    weights are others (arithmetic that does not repeat itself, or a run continued otherwise), that epoch is replaced,
    and later ones, which belong to weights this run will not have, are removed.

    Args:
        every: Evaluate epoch 0, every so many epochs (or after the epochs of a list), and the last one.
        datasets: Which sets; None for the test sets, in distribution first, and the validation set.
        directory: Folder of the files; None for ``<default_root_dir>/dynamics``.
        overwrite: Replace what another training has left there.
        logits_fn: For modules that are not of this package: ``(module, batch)`` to logits ``[B, C]``.
        label_fn: Likewise: batch to labels ``[B]``.
        id_fn: Likewise: batch to row numbers ``[B]``; None counts the questions, which only one process can.
        loaders_fn: For data that is not of this package: trainer to ``{dataset: loader}``.

    Raises:
        UsageError: ``every`` below 1.

    Example:
        >>> import lightning as L
        >>> from bayeslora import Dynamics
        >>> trainer = L.Trainer(callbacks=[Dynamics(every=2)], logger=False, accelerator="cpu")
    """

    def __init__(
        self,
        every: int | list[int] = 1,
        datasets: Sequence[str] | None = None,
        directory: str | Path | None = None,
        overwrite: bool = False,
        logits_fn: LogitsFn | None = None,
        label_fn: Callable[[Any], Tensor] | None = None,
        id_fn: Callable[[Any], Tensor] | None = None,
        loaders_fn: Callable[[L.Trainer], Loaders] | None = None,
    ) -> None:
        if min([every] if isinstance(every, int) else every, default=0) < 1:
            raise UsageError(f"Dynamics' every is {every}; allowed: a number of epochs from 1, or a list of them")
        self.every, self.datasets, self.directory, self.overwrite = every, datasets, directory, overwrite
        self.logits_fn, self.label_fn, self.id_fn = logits_fn, label_fn, id_fn
        self.loaders_fn = loaders_fn or evaluation_loaders
        self._loaders: Loaders = {}

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Find the sets.

        Raises:
            UsageError: a set that is not there.
        """
        self._loaders = _chosen(self.loaders_fn(trainer), self.datasets)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Before the first step of a new training, evaluate the base model.

        Raises:
            UsageError: files of another training, which are neither continued nor given up.
        """
        if trainer.global_step > 0:
            return
        found = _from(self.folder(trainer), 0)
        trainer.strategy.barrier("dynamics")  # every process has looked
        if found and not self.overwrite:
            raise UsageError(
                f"{found[0].parent} already holds the dynamics of a training; continue it from its checkpoint, give "
                "Dynamics another directory, or overwrite=True"
            )
        if trainer.is_global_zero:
            _remove(found)
        self._record(trainer, pl_module)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Evaluate an epoch that is due."""
        epoch = _epochs(trainer)
        if epoch % self.every == 0 if isinstance(self.every, int) else epoch in self.every:
            self._record(trainer, pl_module)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Evaluate the last epoch, due or not."""
        self._record(trainer, pl_module)

    def folder(self, trainer: L.Trainer) -> Path:
        """Where the files are."""
        return Path(trainer.default_root_dir) / FOLDER if self.directory is None else Path(self.directory)

    def _record(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write an epoch, unless it is there."""
        epoch, digest = _epochs(trainer), tensors_digest(sorted(one.items()) for one in weight_sets(pl_module))
        file = self.folder(trainer) / f"epoch-{epoch:03d}.parquet"
        record = file.with_suffix(".json")
        if record.is_file() and file.is_file() and read_record(record, _REMEDY).get("weights") == digest:
            return
        trainer.strategy.barrier("dynamics")  # every process has looked
        if trainer.is_global_zero:
            _remove(_from(file.parent, epoch))
        self._predict(trainer, pl_module, file)
        if trainer.is_global_zero:  # last, since it says that the epoch is whole
            ids, gram = _members(pl_module)
            distances = {"gram": gram.tolist(), "cosine": _json(cosine(gram))}
            header = {"schema": CONTRACT_VERSION, "epoch": epoch, "step": trainer.global_step, "weights": digest}
            write_record(record, {**header, "members": ids, **distances})
        trainer.strategy.barrier("dynamics")

    def _predict(self, trainer: L.Trainer, pl_module: L.LightningModule, file: Path) -> None:
        names = list(self._loaders)
        writer = Predictions(logits_fn=self.logits_fn, label_fn=self.label_fn, id_fn=self.id_fn)
        writer.file, writer.names = file, names
        path = prediction_path(pl_module, self.logits_fn)
        with _aside(pl_module), trainer.precision_plugin.val_step_context():
            for place, loader in enumerate(self._loaders.values()):
                for index, batch in enumerate(loader):
                    batch = move_data_to_device(batch, pl_module.device)
                    writer.on_test_batch_end(trainer, pl_module, path(batch), batch, index, place)
        writer.write(trainer, pl_module)


def evaluation_loaders(trainer: L.Trainer) -> Loaders:
    """The loaders of a datamodule of this package: test sets, in distribution first, then validation.

    Raises:
        UsageError: data of another kind.
    """
    data = trainer.datamodule  # type: ignore[attr-defined]
    if not isinstance(data, MultipleChoiceDataModule):
        raise UsageError("Dynamics does not know these data's sets; give it loaders_fn: trainer -> {dataset: loader}")
    tests = dict(zip(data.test_names, data.test_dataloader(), strict=True))
    return tests | ({VALIDATION: data.val_dataloader()} if data.val_questions else {})


def _chosen(loaders: Loaders, wanted: Sequence[str] | None) -> Loaders:
    names = list(loaders) if wanted is None else list(dict.fromkeys(wanted))
    missing = [name for name in names if name not in loaders]
    if missing or not names:
        raise UsageError(f"Dynamics' datasets are {wanted}; allowed: {', '.join(loaders)}")
    return {name: loaders[name] for name in names}


@contextmanager
def _aside(pl_module: L.LightningModule) -> Iterator[None]:
    """Evaluate in the middle of training: no gradients, no dropout, modes and random states as they were."""
    with evaluation_mode(pl_module), torch.no_grad(), isolate_rng():
        yield


def _members(pl_module: Any) -> tuple[list[int], Tensor]:
    """Ids of the members that predict, 0 for a single network, and the inner products of their updates."""
    networks = weight_sets(pl_module)
    ids = getattr(pl_module, "member_ids", range(len(networks)))
    usable = pl_module.usable_members() if hasattr(pl_module, "usable_members") else range(len(networks))
    return [ids[place] for place in usable], product_gram([networks[place] for place in usable])


def _epochs(trainer: L.Trainer) -> int:
    """How many epochs of training are over."""
    return int(trainer.fit_loop.epoch_progress.current.processed)  # type: ignore[attr-defined]


def _from(folder: Path, epoch: int) -> list[Path]:
    """Files of this epoch and of later ones, in order."""
    files = [file for kind in ("json", "parquet") for file in folder.glob(f"epoch-*.{kind}")]
    return sorted(file for file in files if int(file.stem.removeprefix("epoch-")) >= epoch)


def _remove(files: Sequence[Path]) -> None:
    for file in sorted(files, key=lambda file: file.suffix):  # .json before .parquet: an epoch is whole or unmarked
        file.unlink(missing_ok=True)


def _json(matrix: Tensor) -> list[list[float | None]]:
    return [[None if value != value else value for value in row] for row in matrix.tolist()]
