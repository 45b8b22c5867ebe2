"""One cell of a grid: the ordinary ``fit`` and ``test`` of one run folder, as far as they are not done."""

from __future__ import annotations

import os
from contextlib import nullcontext

import torch

from bayeslora.commands.lightning import CommandLine, run
from bayeslora.commands.resolved import Documents, config_options
from bayeslora.errors import RunError, UsageError, in_one_line
from bayeslora.files import RUN_FILE, run_record, write_record
from bayeslora.grid.cells import DONE, LAST, TRAINED, Cell, training_cell
from bayeslora.grid.environment import environment_record
from bayeslora.grid.specification import Grid


class OnValidation(CommandLine):
    """The command line of a test that predicts the validation questions, and no test set."""

    def instantiate_classes(self) -> None:
        """Make what the configuration names, and turn the data to the validation questions."""
        super().instantiate_classes()
        turn = getattr(self.datamodule, "test_on_validation", None)
        if turn is None:
            raise UsageError(
                f"{type(self.datamodule).__name__} cannot be tested on its validation questions; give it a method "
                "`test_on_validation`, or take a DataModule of this package"
            )
        turn()


def run_cell(grid: Grid, cell: Cell, test_line: type[CommandLine] = CommandLine) -> None:
    """Do what is left of a cell, and before it what is left of the training it uses.

    It can be killed at any time and run again: training goes on from its last checkpoint, a test is repeated, and what
    is done stays. Several processes may ask for one cell; one works, the others wait.

    Args:
        grid: The grid.
        cell: One of its cells.
        test_line: The command line of its test.

    Raises:
        UsageError: the run folder is another cell's, or the configuration is refused.
        RunError: what the cell reads has changed while it ran.
    """
    torch.set_num_threads(grid.threads)  # where torch was imported before the environment was put right
    documents = Documents(grid)
    with cell.locked():
        cell.adopt(documents.of(cell))
        if cell.done():
            return
        cell.note_attempt(environment_record(os.environ, grid.threads))
        try:
            _attempt(grid, cell, documents, test_line)
        except Exception as error:
            own = isinstance(error, UsageError | RunError)
            cell.note_failure(str(error) if own else in_one_line(error))
            raise


def _attempt(grid: Grid, cell: Cell, documents: Documents, test_line: type[CommandLine]) -> None:
    training = training_cell(grid, cell)
    with training.locked() if training != cell else nullcontext():
        _train(grid, training, documents)
    _test(grid, cell, test_line)
    if training != cell:
        shared = run_record(training.folder).get("train_seconds")
        write_record(cell.folder / RUN_FILE, {**run_record(cell.folder), "shared_train_seconds": shared})
    if Documents(grid).of(cell) != documents.of(cell):
        raise RunError(f"what {cell.key} reads has changed while it ran; its results are of neither state")
    cell.end(DONE)


def _train(grid: Grid, cell: Cell, documents: Documents) -> None:
    """The training of a cell, from where it stopped; nothing for the bare base, or where it has ended."""
    cell.adopt(documents.of(cell))
    if grid.methods[cell.method].checkpoint == "base" or cell.trained():
        return
    how = ["--ckpt_path=last"] if (cell.folder / LAST).exists() else ["--overwrite"]
    _run("fit", grid, cell, how, CommandLine)
    cell.end(TRAINED)


def _test(grid: Grid, cell: Cell, line: type[CommandLine]) -> None:
    checkpoint, training = grid.methods[cell.method].checkpoint, training_cell(grid, cell)
    named = checkpoint if checkpoint == "base" else str(training.folder / "checkpoints" / f"{checkpoint}.ckpt")
    _run("test", grid, cell, ["--overwrite", f"--ckpt_path={named}"], line)


def _run(stage: str, grid: Grid, cell: Cell, options: list[str], line: type[CommandLine]) -> None:
    with config_options(grid.parts(cell.method, cell.dataset)) as configuration:
        place = [f"--seed_everything={cell.seed}", f"--trainer.default_root_dir={cell.folder}"]
        quiet = ["--trainer.devices=1", "--trainer.enable_progress_bar=false"]
        run([stage, *configuration, *place, *quiet, *options], line)
