"""What every run has beside its method: the saved configuration, the checkpoints, predictions and the report."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.cli import SaveConfigCallback

from bayeslora.callbacks.predictions import Predictions
from bayeslora.callbacks.report import Report


class SaveStageConfig(SaveConfigCallback):
    """Saves the configuration as ``<stage>-config.yaml`` in the run folder."""

    def save_config(self, trainer: Trainer, pl_module: Any, stage: str) -> None:
        """Write the file; the run folder's own check has passed by now."""
        file = Path(trainer.default_root_dir) / f"{_stage(trainer)}-config.yaml"
        file.parent.mkdir(parents=True, exist_ok=True)
        self.parser.save(self.config, str(file), skip_none=False, overwrite=True, multifile=False)


class LastCheckpoint(ModelCheckpoint):
    """Keeps the newest state as ``last.ckpt``: every epoch or every so many steps, and when training ends."""

    def __init__(self, folder: Path, every_n_train_steps: int | None = None) -> None:
        self.file = folder / "last.ckpt"
        super().__init__(
            folder,
            filename="last",
            every_n_train_steps=every_n_train_steps,
            enable_version_counter=False,
            save_on_train_epoch_end=None if every_n_train_steps else True,
        )

    def on_train_end(self, trainer: Trainer, pl_module: Any) -> None:
        """Save what the last period left unsaved; saved once more where it left nothing."""
        trainer.save_checkpoint(self.file)


def stage_callbacks(stage: str, root: Path, config: Any) -> list[Callback]:
    """What every run has; the checkpoint callbacks hold state of a checkpoint, so that every stage needs them."""
    folder = root / "checkpoints"
    best = ModelCheckpoint(folder, filename="best", monitor="val/nll", mode="min", enable_version_counter=False)
    callbacks: list[Callback] = [best, LastCheckpoint(folder, config.save_every_n_steps)]
    if stage in ("test", "predict"):
        callbacks.append(Predictions(overwrite=config.overwrite))
    return [*callbacks, Report()] if stage == "test" else callbacks


def log_folder(root: Path, stage: str) -> str:
    """A folder of its own for every run of a stage: Lightning's CSV logger empties the one it is given."""
    taken = 1
    name = stage
    while (root / "logs" / name).exists():
        taken += 1
        name = f"{stage}-{taken}"
    return name


def _stage(trainer: Trainer) -> str:
    return str(getattr(trainer.state.fn, "value", trainer.state.fn))
