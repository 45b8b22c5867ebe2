"""The command ``bayeslora benchmark``: methods x datasets x seeds as one resumable grid, and its table."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from bayeslora.commands.engines import add_engine_options, check_engine_options, make_engine, queue_on_slurm
from bayeslora.errors import UsageError, require
from bayeslora.grid.cells import Cell, cell_of, cells, training_cell
from bayeslora.grid.environment import end_with, put_right
from bayeslora.grid.live import Progress
from bayeslora.grid.schedule import run_cells
from bayeslora.grid.specification import Grid, read_grid


def main(args: Sequence[str]) -> int:
    """Run ``bayeslora benchmark``; returns the exit status: 1 where a cell has failed."""
    given = _parser().parse_args(args)
    end_with(os.environ)
    check_engine_options(given)
    grid = read_grid(given.config, given.out)
    put_right(os.environ, grid.threads)  # before torch and Lightning are imported
    if given.cell:
        from bayeslora.commands.cell import run_cell

        run_cell(grid, cell_of(grid, given.cell))
        return 0
    grid = grid.narrowed(_names(given.methods), _names(given.datasets), _seeds(given.seeds))
    console = Console()
    if given.dry_run:
        return _dry_run(grid, console)
    return _run(grid, given, console)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="bayeslora benchmark",
        description="Run a grid of methods, datasets and seeds, as far as it is not done, and write its tables.",
    )
    parser.add_argument("-c", "--config", type=Path, required=True, metavar="FILE", help="the file of a grid")
    parser.add_argument("--cell", metavar="KEY", help="run one cell: DATASET/METHOD/SEED")
    parser.add_argument("--dry-run", action="store_true", help="list the cells and run nothing")
    parser.add_argument("--collect", action="store_true", help="run nothing, and make the page of what is there")
    add_engine_options(parser)
    parser.add_argument("--methods", metavar="A,B", help="these rows alone, and the trainings they use")
    parser.add_argument("--datasets", metavar="A,B", help="these datasets alone")
    parser.add_argument("--seeds", metavar="0,1", help="other seeds than the file's")
    parser.add_argument("--out", type=Path, help="folder of the run folders, instead of the file's")
    return parser


def _names(given: str | None) -> list[str]:
    return [name.strip() for name in given.split(",") if name.strip()] if given else []


def _seeds(given: str | None) -> list[int]:
    names = _names(given)
    holds = all(name.isdecimal() for name in names) and len({*names}) == len(names)
    require("--seeds", given, holds, "different whole numbers such as 0,1,2")
    return [int(name) for name in names]


def _dry_run(grid: Grid, console: Console) -> int:
    from bayeslora.grid.estimate import estimates_table

    console.print(estimates_table(grid, cells(grid)))
    return 0


def _run(grid: Grid, given: argparse.Namespace, console: Console) -> int:
    """Check every cell's configuration and folder, run what is left, and write the tables of what is there."""
    from bayeslora.commands.resolved import Documents

    everything, documents = cells(grid), Documents(grid)
    for cell in everything:
        cell.check(documents.of(cell))
    documents.contents.keep()
    states = {cell: cell.status() for cell in everything}
    left = [] if given.collect else [cell for cell in everything if states[cell] != "done"]
    needs = {cell: training for cell in left if (training := training_cell(grid, cell)) != cell}
    command = ["benchmark", "-c", str(given.config.resolve()), "--out", str(grid.out), "--cell"]
    if left and given.engine == "slurm":
        queue_on_slurm(given, grid.out / "slurm", left, needs, grid.threads, command, console)
        return 0
    progress = Progress(grid, states.items(), console)
    failures = {cell: str(cell.attempts()[1]) for cell in everything if given.collect and states[cell] == "failed"}
    if left:
        engine = make_engine(given, grid.threads, command)
        with progress.shown():
            failures = run_cells(engine, left, needs, progress.changed)
    if not (left and console.is_terminal):
        console.print(progress.table())
    _write_tables(grid, everything, console)
    for cell, reason in failures.items():
        console.print(f"failed: {cell.key}: {reason}", markup=False, highlight=False, soft_wrap=True)
    return 1 if failures else 0


def _write_tables(grid: Grid, everything: Sequence[Cell], console: Console) -> None:
    """Compare the rows of every dataset, as far as they are done; write the tables and one page of all of them."""
    from bayeslora.commands.compare import compare
    from bayeslora.commands.grid_page import write_page

    comparisons = {}
    for dataset in grid.datasets:
        done = [cell for cell in everything if cell.dataset == dataset and cell.done()]
        if not done:
            continue
        rows = {cell.method for cell in done}
        reference = grid.reference if grid.reference in rows else None
        order = sorted(done, key=lambda cell: (list(grid.methods).index(cell.method), cell.seed))
        try:
            comparisons[dataset] = compare([f"{c.method}={c.folder}" for c in order], reference, console=console)
        except UsageError as error:
            raise UsageError(f"the rows of {dataset} cannot be compared: {error}") from error
    missing = [cell.key for cell in everything if not cell.done()]
    for file in write_page(grid, comparisons, missing):
        console.print(str(file), soft_wrap=True, highlight=False)
