"""One line of progress for fit, validation, test and prediction, as wide as the terminal and never wider."""

from __future__ import annotations

import time
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.trainer.states import TrainerFn
from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task
from rich.text import Text

_BAR = 14  # characters of the bar itself
_NAMES = {"train/loss": "loss", "val/nll": "val NLL", "val/accuracy": "val accuracy"}


class ProgressLine(ProgressBar):
    """The command line's progress bar: epoch, batches, time left and the last figures, in one line.

    A validation shows in the same line and leaves nothing behind. Where the output is no terminal, nothing is shown.

    Args:
        console: Where the line goes; None for the terminal.
    """

    def __init__(self, console: Console | None = None) -> None:
        super().__init__()
        self._console = console or Console()
        self._wanted = True
        self._line: Progress | None = None
        self._done = 0  # batches of the epoch
        self._begun, self._before = 0.0, 0.0  # when training began, and the share of it that was done before

    @property
    def is_enabled(self) -> bool:
        """Whether there is a terminal, in the process that shows it."""
        return self._wanted and self._console.is_terminal

    def disable(self) -> None:
        """Show nothing."""
        self._wanted = False

    def enable(self) -> None:
        """Show the line again."""
        self._wanted = True

    # --- training ------------------------------------------------------------------------------------------------

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the clock."""
        self._begun, self._before = time.monotonic(), self._share(0)

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Name the epoch."""
        self._show(self._epoch(), 0, self.trainer.num_training_batches)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count the batch."""
        self._done = batch_idx + 1
        self._show(self._epoch(), self._done, trainer.num_training_batches, self._left(self._done))

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Leave the last state of the line on the terminal."""
        self._end()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Leave the terminal as it was."""
        self._end()

    # --- validation, test, prediction ----------------------------------------------------------------------------

    def on_validation_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Count the batch, in the line of the epoch."""
        name = "validation" if trainer.state.fn == TrainerFn.VALIDATING else f"{self._epoch()} validation"
        if not trainer.sanity_checking:
            self._show(name, batch_idx + 1, trainer.num_val_batches[dataloader_idx])

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """End the line of a validation of its own; go back to that of the epoch, now with the validation's figures."""
        if trainer.state.fn == TrainerFn.VALIDATING:
            self._end()
        elif not trainer.sanity_checking:
            self._show(self._epoch(), self._done, trainer.num_training_batches, self._left(self._done))

    def on_test_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Count the batch among those of all sets."""
        kind, counts = (
            ("predict", trainer.num_predict_batches) if trainer.predicting else ("test", trainer.num_test_batches)
        )
        done = sum(counts[:dataloader_idx]) + batch_idx + 1
        self._show(kind, int(done) if done < float("inf") else batch_idx + 1, sum(counts))

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """End the line."""
        self._end()

    on_predict_batch_end, on_predict_end = on_test_batch_end, on_test_end

    # --- the line ------------------------------------------------------------------------------------------------

    def print(self, *args: Any, **kwargs: Any) -> None:
        """Print above the line."""
        self._console.print(*args)

    def _end(self) -> None:
        if self._line is not None:
            self._line.stop()
            self._line = None

    def _show(self, what: str, done: int, total: float, left: float | None = None) -> None:
        """Put a state into the line, which begins where there is none."""
        if not self.is_enabled:
            return
        if self._line is None:
            self._line = Progress(_What(), BarColumn(_BAR), _Rest(), console=self._console)
            self._line.add_task(what, total=None)
            self._line.start()
        known = total != float("inf")
        parts = [f"{done}/{int(total)}" if known else str(done)]
        if left is not None:
            parts.append(f"{_clock(left)} left")
        figures = [f"{_NAMES.get(name, name)} {value:.3f}" for name, value in self._figures().items()]
        room = self._console.width - len(what) - _BAR - 3
        for figure in figures:  # as many as there is room for
            parts += [figure] if len("  ".join([*parts, figure])) <= room else []
        rest = "  ".join(parts)[:room]
        self._line.update(
            self._line.task_ids[0], description=what, completed=done, total=total if known else None, rest=rest
        )

    def _figures(self) -> dict[str, float]:
        found = self.get_metrics(self.trainer, self.trainer.lightning_module)
        known = [*(name for name in _NAMES if name in found), *(name for name in found if name not in _NAMES)]
        return {name: float(found[name]) for name in known if not isinstance(found[name], str | dict)}  # type: ignore[arg-type]

    def _epoch(self) -> str:
        last = self.trainer.max_epochs
        return f"epoch {self.trainer.current_epoch + 1}" + ("" if last in (None, -1) else f"/{last}")

    def _share(self, batches: int) -> float:
        """The share of the training that is over; 0 where its length is not known."""
        epochs, size = self.trainer.max_epochs or -1, self.trainer.num_training_batches
        known = epochs > 0 and 0 < size < float("inf")
        return (self.trainer.current_epoch + batches / size) / epochs if known else 0.0

    def _left(self, batches: int) -> float | None:
        share = self._share(batches)
        since = share - self._before
        return (time.monotonic() - self._begun) / since * (1 - share) if since > 0 else None


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}"


class _What(ProgressColumn):
    """What is going on."""

    def render(self, task: Task) -> Text:
        """The task's description, in one line."""
        return Text(task.description, no_wrap=True)


class _Rest(ProgressColumn):
    """How far it is, what is left, and the last figures."""

    def render(self, task: Task) -> Text:
        """The task's figures, cut where the terminal ends."""
        return Text(task.fields.get("rest", ""), no_wrap=True, overflow="ellipsis")
