"""The batches that a run was trained and validated on, for callbacks that fit something to them after training."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sized
from itertools import islice
from typing import Any
from weakref import WeakKeyDictionary

import lightning as L
from lightning.pytorch.utilities import rank_zero_warn
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch.utils.data import DataLoader, WeightedRandomSampler

from bayeslora.datamodules.loader import AnswerLoader
from bayeslora.datamodules.sampler import EvalBatches
from bayeslora.errors import UsageError

_seen: WeakKeyDictionary[L.Trainer, dict[str, Any]] = WeakKeyDictionary()


class RemembersFit(L.Callback):
    """Remembers the loaders that ``fit`` is given, which a trainer forgets; the base of callbacks that need them."""

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Remember what is trained and validated on, also where the first epochs are not validated."""
        if trainer.val_dataloaders is None and trainer.enable_validation:
            trainer.validating = True  # as the trainer does where the first epoch is
            trainer.fit_loop.epoch_loop.val_loop.setup_data()
            trainer.training = True
        seen = _seen.setdefault(trainer, {})
        seen["train_dataloader"], seen["val_dataloader"] = trainer.train_dataloader, trainer.val_dataloaders

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Remember what is validated on."""
        _seen.setdefault(trainer, {})["val_dataloader"] = trainer.val_dataloaders


class Batches:
    """Batches of one loader or of several, one after another.

    Args:
        loaders: What a ``*_dataloader`` returned: a loader, or a list or a mapping of them.
    """

    def __init__(self, loaders: Any) -> None:
        self.loaders = list(_flat(loaders))

    def __iter__(self) -> Iterator[Any]:
        """Every batch of every loader."""
        for loader in self.loaders:
            yield from loader

    def __len__(self) -> int:
        """Number of batches."""
        return sum(map(len, self.loaders))


class First:
    """The first batches of a loader.

    Args:
        loader: What gives the batches.
        count: How many there are at most.
    """

    def __init__(self, loader: Any, count: int) -> None:
        self.loader, self.count = loader, count

    def __iter__(self) -> Iterator[Any]:
        """The batches."""
        return islice(self.loader, self.count)

    def __len__(self) -> int:
        """Number of batches."""
        return min(len(self.loader), self.count)


def training_batches(trainer: L.Trainer, pl_module: L.LightningModule, given: Iterable[Any] | None = None) -> Any:
    """The training questions, once each where the data can say so; None where there are none.

    A trial (``fast_dev_run``) has as many batches of them as of everything else.

    Args:
        trainer: The trainer of the run.
        pl_module: Its module.
        given: Batches that were handed to a callback; they come before everything else.
    """
    datamodule = trainer.datamodule  # type: ignore[attr-defined]
    if given is None and hasattr(datamodule, "train_eval_dataloader"):
        return _tried(trainer, datamodule.train_eval_dataloader())
    return _found(given, trainer, pl_module, "train_dataloader")


def validation_batches(trainer: L.Trainer, pl_module: L.LightningModule, given: Iterable[Any] | None = None) -> Any:
    """The validation questions; None where there are none. Arguments as for :func:`training_batches`.

    Args:
        trainer: The trainer of the run.
        pl_module: The module that the trainer runs.
        given: Batches to use instead of those the run has; None takes the run's.
    """
    return _found(given, trainer, pl_module, "val_dataloader")


def validation_as_tested(trainer: L.Trainer, pl_module: L.LightningModule, given: Iterable[Any] | None = None) -> Any:
    """The same, asked as a test's questions are where the data can say so: in several orders of the options.

    Args:
        trainer: The trainer of the run.
        pl_module: Its module.
        given: As for :func:`validation_batches`.
    """
    make = getattr(trainer.datamodule, "val_as_tested_dataloader", None)  # type: ignore[attr-defined]
    return validation_batches(trainer, pl_module, make() if given is None and make is not None else given)


def require_validation(
    trainer: L.Trainer, pl_module: L.LightningModule, why: str, given: Iterable[Any] | None = None
) -> None:
    """Refuse to train where a callback will find no validation questions afterwards.

    Args:
        trainer: The trainer of the run.
        pl_module: The module that the trainer runs.
        why: The message.
        given: As for :func:`validation_batches`.

    Raises:
        UsageError: there are none.
    """
    if validation_batches(trainer, pl_module, given) is None:
        raise UsageError(why)


def warn_unless_each_once(batches: Any, remedy: str) -> None:
    """Say so where a training loader is known to give questions several times, or not at all.

    Args:
        batches: What :func:`training_batches` found.
        remedy: What to give instead.
    """
    for loader in Batches(batches).loaders:
        sampler = getattr(loader, "sampler", None)
        if isinstance(sampler, WeightedRandomSampler) or getattr(sampler, "replacement", False):
            what = f"draws its {len(sampler)} questions with replacement, so that some count several times"  # type: ignore[arg-type]
        elif isinstance(loader, DataLoader) and loader.drop_last and (left := len(sampler) % (loader.batch_size or 1)):  # type: ignore[arg-type]
            what = f"drops its last batch, so that {left} of {len(sampler)} questions are left out"  # type: ignore[arg-type]
        else:
            continue
        rank_zero_warn(f"the training loader {what}; {remedy}")


def undealt(loader: Any) -> Any:
    """The batches of an evaluation as one process has them, where several share them out.

    Raises:
        UsageError: a loader that is not of this package, and does not say how it deals its questions.
    """
    if loader is None:
        return None
    if isinstance(loader, First):
        return First(undealt(loader.loader), loader.count)
    if isinstance(loader, Batches):
        return Batches([undealt(each) for each in loader.loaders])
    if not (isinstance(loader, AnswerLoader) and isinstance(loader.batch_sampler, EvalBatches)):
        raise UsageError(
            f"several processes fit together, and the loader ({type(loader).__name__}) does not say how they share its "
            "questions; give train_batches and val_batches, the same batches in every process, or fit on one device"
        )
    return loader.undealt()


def _found(given: Any, trainer: L.Trainer, pl_module: L.LightningModule, name: str) -> Any:
    """What was given, else the DataModule's, else what ``fit`` was given in this process, else the module's own."""
    found, datamodule = given, trainer.datamodule  # type: ignore[attr-defined]
    if found is None and datamodule is not None and is_overridden(name, datamodule, L.LightningDataModule):
        found = getattr(datamodule, name)()
    if found is None:
        found = _seen.get(trainer, {}).get(name)
    if found is None and is_overridden(name, pl_module, L.LightningModule):
        found = getattr(pl_module, name)()
    if isinstance(found, Iterator):  # a fit may look at it more than once
        found = list(found)
    if found is None:
        return None
    loaders = [loader for loader in Batches(found).loaders if not _is_empty(loader)]
    return None if not loaders else _tried(trainer, Batches(loaders) if len(loaders) > 1 else loaders[0])


def _tried(trainer: L.Trainer, loader: Any) -> Any:
    """All batches, or in a trial as many as of everything else."""
    few = int(trainer.fast_dev_run)  # type: ignore[attr-defined]
    return First(loader, few) if few else loader


def _is_empty(loader: Any) -> bool:
    """Whether there is nothing in a loader for any process."""
    questions = getattr(loader, "dataset", loader)
    return isinstance(questions, Sized) and len(questions) == 0


def _flat(loaders: Any) -> Iterator[Any]:
    if isinstance(loaders, Mapping):
        loaders = list(loaders.values())
    if isinstance(loaders, list | tuple) and all(hasattr(loader, "__iter__") for loader in loaders):
        inner = [loader for loader in loaders if _is_loader(loader)]
        if inner:
            for loader in loaders:
                yield from _flat(loader)
            return
    yield loaders


def _is_loader(value: Any) -> bool:
    """A loader among a list of them; a list of batches holds tensors, tuples of tensors or mappings."""
    return hasattr(value, "dataset") or hasattr(value, "batch_sampler")
