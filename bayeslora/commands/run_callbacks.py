"""What every run has beside its method: the saved configuration, the checkpoints, predictions and the report."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.cli import SaveConfigCallback

from bayeslora.callbacks.predictions import Predictions
from bayeslora.callbacks.report import Report
from bayeslora.commands.checkpoints import load
from bayeslora.commands.saved_config import seal
from bayeslora.serving.keep import KeepForServing
from bayeslora.signals import Stopped, current_handler


class SaveStageConfig(SaveConfigCallback):
    """Saves the configuration as ``<stage>-config.yaml`` in the run folder."""

    def save_config(self, trainer: Trainer, pl_module: Any, stage: str) -> None:
        """Write the file; the run folder's own check has passed by now. A trial leaves nothing."""
        if trainer.fast_dev_run or trainer.barebones:  # type: ignore[attr-defined]
            return
        file = Path(trainer.default_root_dir) / f"{_stage(trainer)}-config.yaml"
        seal(file, self.parser.dump(self.config, skip_none=False).encode())


class SignalGate(Callback):
    """Lets signals wait while training steps are taken, so that the state is saved between two of them.

    It stands in front of all other callbacks: what they do before and after training ends at once. Lightning's own
    handler of SIGTERM, which ends a run with status 0, is replaced as soon as it is there.
    """

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        """Signals wait from here on."""
        self._defer(True)

    def on_train_end(self, trainer: Trainer, pl_module: Any) -> None:
        """Signals wait no longer; one that has come since the last step ends the command here."""
        self._defer(False)
        own = current_handler()
        if own is not None and own.asked is not None:
            raise Stopped(own.asked, _saved(trainer))

    def on_exception(self, trainer: Trainer, pl_module: Any, exception: BaseException) -> None:
        """Training has ended, one way or the other."""
        self._defer(False)

    def on_sanity_check_start(self, trainer: Trainer, pl_module: Any) -> None:
        """Take the signals over from Lightning."""
        self._defer(False)

    on_test_start = on_predict_start = on_sanity_check_start

    def _defer(self, on: bool) -> None:
        own = current_handler()
        if own is not None:
            own.install()
            own.deferred = on


class LastCheckpoint(ModelCheckpoint):
    """Keeps the newest state as ``last.ckpt``: every epoch or so many steps, when training ends, and at a signal."""

    def __init__(self, folder: Path, every_n_train_steps: int | None = None) -> None:
        self.file = folder / "last.ckpt"
        super().__init__(
            folder,
            filename="last",
            every_n_train_steps=every_n_train_steps,
            enable_version_counter=False,
            save_on_train_epoch_end=None if every_n_train_steps else True,
        )

    def on_train_batch_end(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        """Save where it is time to; save and stop where a signal asks for it, on all ranks at the same step."""
        super().on_train_batch_end(trainer, *args, **kwargs)
        own = current_handler()
        asked = 0 if own is None or own.asked is None else own.asked
        if trainer.world_size > 1:
            highest = trainer.strategy.reduce(
                torch.tensor(float(asked), device=trainer.strategy.root_device), None, "max"
            )
            asked = int(highest)
        if asked:
            trainer.save_checkpoint(self.file)
            raise Stopped(asked, str(self.file))

    def on_validation_batch_end(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        """Stop inside a validation, which a fit that goes on from the last checkpoint repeats."""
        own = current_handler()
        if own is not None and own.asked is not None and trainer.world_size == 1:
            raise Stopped(own.asked, _saved(trainer))

    def on_train_end(self, trainer: Trainer, pl_module: Any) -> None:
        """Save what the last period left unsaved."""
        if _saved(trainer) is None or load(self.file)["global_step"] != trainer.global_step:
            trainer.save_checkpoint(self.file)


def _saved(trainer: Trainer) -> str | None:
    """The newest state that was saved."""
    files = (c.file for c in trainer.checkpoint_callbacks if isinstance(c, LastCheckpoint))
    return next((str(file) for file in files if file.exists()), None)


def stage_callbacks(stage: str, root: Path, config: Any) -> list[Callback]:
    """What every run has; the checkpoint callbacks hold state of a checkpoint, so that every stage needs them.

    Args:
        stage: ``fit``, ``validate``, ``test`` or ``predict``.
        root: The run folder.
        config: The parsed configuration of the run.
    """
    folder = root / "checkpoints"
    best = ModelCheckpoint(folder, filename="best", monitor="val/nll", mode="min", enable_version_counter=False)
    callbacks: list[Callback] = [best, LastCheckpoint(folder, config.save_every_n_steps)]
    if stage in ("test", "predict"):
        callbacks.append(Predictions(overwrite=config.overwrite))
    return [*callbacks, Report(), KeepForServing()] if stage == "test" else callbacks


def log_folder(root: Path, stage: str) -> str:
    """A folder of its own for every run of a stage: Lightning's CSV logger empties the one it is given.

    Args:
        root: The run folder.
        stage: ``fit``, ``validate``, ``test`` or ``predict``.
    """
    taken = 1
    name = stage
    while (root / "logs" / name).exists():
        taken += 1
        name = f"{stage}-{taken}"
    return name


def _stage(trainer: Trainer) -> str:
    return str(getattr(trainer.state.fn, "value", trainer.state.fn))
