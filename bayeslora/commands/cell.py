"""One cell of a grid: the ordinary ``fit`` and ``test`` of one run folder, as far as they are not done."""

from __future__ import annotations

import os
from contextlib import nullcontext

import torch

from bayeslora.commands.lightning import run
from bayeslora.commands.resolved import Documents, config_options
from bayeslora.errors import RunError, UsageError, in_one_line
from bayeslora.grid.cells import DONE, LAST, TRAINED, Cell, training_cell
from bayeslora.grid.environment import environment_record
from bayeslora.grid.specification import Grid


def run_cell(grid: Grid, cell: Cell) -> None:
    """Do what is left of a cell, and before it what is left of the training it uses.

    It can be killed at any time and run again: training goes on from its last checkpoint, a test is repeated, and what
    is done stays. Several processes may ask for one cell; one works, the others wait.

    Args:
        grid: The grid.
        cell: One of its cells.

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
            _attempt(grid, cell, documents)
        except Exception as error:
            own = isinstance(error, UsageError | RunError)
            cell.note_failure(str(error) if own else in_one_line(error))
            raise


def _attempt(grid: Grid, cell: Cell, documents: Documents) -> None:
    training = training_cell(grid, cell)
    with training.locked() if training != cell else nullcontext():
        _train(grid, training, documents)
    _test(grid, cell)
    if Documents(grid).of(cell) != documents.of(cell):
        raise RunError(f"what {cell.key} reads has changed while it ran; its results are of neither state")
    cell.end(DONE)


def _train(grid: Grid, cell: Cell, documents: Documents) -> None:
    """The training of a cell, from where it stopped; nothing for the bare base, or where it has ended."""
    cell.adopt(documents.of(cell))
    if grid.methods[cell.method].checkpoint == "base" or cell.trained():
        return
    how = ["--ckpt_path=last"] if (cell.folder / LAST).exists() else ["--overwrite"]
    _run("fit", grid, cell, how)
    cell.end(TRAINED)


def _test(grid: Grid, cell: Cell) -> None:
    checkpoint, training = grid.methods[cell.method].checkpoint, training_cell(grid, cell)
    named = checkpoint if checkpoint == "base" else str(training.folder / "checkpoints" / f"{checkpoint}.ckpt")
    _run("test", grid, cell, ["--overwrite", f"--ckpt_path={named}"])


def _run(stage: str, grid: Grid, cell: Cell, options: list[str]) -> None:
    with config_options(grid.parts(cell.method, cell.dataset)) as configuration:
        place = [f"--seed_everything={cell.seed}", f"--trainer.default_root_dir={cell.folder}"]
        run([stage, *configuration, *place, "--trainer.devices=1", "--trainer.enable_progress_bar=false", *options])
