"""The command ``bayeslora tune``: values of options by validation likelihood, in batches of trials; resumable."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean, median
from typing import Any

from rich.console import Console
from rich.table import Table

from bayeslora.commands.engines import add_engine_options, check_engine_options, make_engine, queue_on_slurm
from bayeslora.errors import RunError, UsageError
from bayeslora.grid.cells import Cell, cell_of, cells
from bayeslora.grid.environment import end_with, put_right
from bayeslora.grid.live import Progress
from bayeslora.grid.proposals import Trial, optuna_version
from bayeslora.grid.schedule import run_cells
from bayeslora.grid.space import Space, read_space
from bayeslora.grid.tuning import DATASET, Tuning

_METRICS = "test/metrics.json"  # of a trial's run: the test stage has predicted the validation questions


def main(args: Sequence[str]) -> int:
    """Run ``bayeslora tune``; returns the exit status."""
    given = _parser().parse_args(args)
    end_with(os.environ)
    check_engine_options(given)
    space, version = read_space(given.space), optuna_version()
    put_right(os.environ, space.threads)  # before torch and Lightning are imported
    given.out = given.out.expanduser().resolve()
    tuning = Tuning(given.out, [file.resolve() for file in given.config], space, _values(given.config, space), version)
    console = Console()
    if given.cell:
        _run_trial(tuning, given.cell)
        return 0
    _check_configuration(tuning)
    if not tuning.starts_inside():
        console.print(
            "the configuration as it is lies outside of the space: it is run, and proposals do not know of it"
        )
    while trials := tuning.batch():
        if not _run_batch(tuning, trials, given, console):
            return 0
        _tell(tuning, trials)
    _say(tuning, given, console)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="bayeslora tune",
        description="Find values of options by the likelihood of the validation questions; no test set is predicted.",
    )
    parser.add_argument(
        "-c", "--config", type=Path, action="append", required=True, metavar="FILE", help="a configuration, as for fit"
    )
    parser.add_argument("--space", type=Path, required=True, metavar="FILE", help="the parameters and their ranges")
    parser.add_argument("--out", type=Path, required=True, help="folder of the trials")
    parser.add_argument("--cell", metavar="KEY", help=f"run one trial with one seed: {DATASET}/NUMBER/SEED")
    add_engine_options(parser)
    return parser


def _values(files: Sequence[Path], space: Space) -> dict[str, Any]:
    """What a configuration says of a space's parameters; a space with options that it does not have is refused."""
    from bayeslora.commands.resolved import resolve
    from bayeslora.grid.specification import Part

    own = Part("common", tuple(files))
    resolve([own, Part("space", arguments={name: domain[0] for name, domain in space.parameters.items()})])
    config, _ = resolve([own])
    return {name: _value(config, name) for name in space.parameters}


def _value(config: Mapping[str, Any], name: str) -> Any:
    """The value of an option, None where the configuration leaves it to a class's default.

    Of a list, such as callbacks, its last entry is meant, as on the command line.
    """
    found: Any = config
    for key in name.split("."):
        found = found[-1] if isinstance(found, list) and found else found
        inner = found.get("init_args") if isinstance(found, Mapping) and key not in found else found
        if not isinstance(inner, Mapping) or key not in inner:
            return None
        found = inner[key]
    return found


def _check_configuration(tuning: Tuning) -> None:
    """Refuse a folder whose trials were made with another configuration: trial 0 is the configuration as it is.

    A trial that has ended is not run again, so that no process of its own would notice.
    """
    from bayeslora.commands.resolved import Documents

    grid = tuning.grid([_trial(tuning, f"{DATASET}/0")])
    documents = Documents(grid)
    for cell in cells(grid):
        cell.check(documents.of(cell))
    documents.contents.keep()


def _trial(tuning: Tuning, key: str) -> Trial:
    """The trial that a key names: one that was told, or one of the batch that comes next."""
    known = {str(trial.number): trial for trial in (*tuning.told, *tuning.batch())}
    number = [*key.split("/"), ""][1]
    if number not in known:
        raise UsageError(f"cell is {key!r}; allowed: {DATASET}/NUMBER/SEED with a number below {len(known)}")
    return known[number]


def _run_trial(tuning: Tuning, key: str) -> None:
    from bayeslora.commands.cell import OnValidation, run_cell

    grid = tuning.grid([_trial(tuning, key)])
    run_cell(grid, cell_of(grid, key), OnValidation)


def _run_batch(tuning: Tuning, trials: Sequence[Trial], given: argparse.Namespace, console: Console) -> bool:
    """Run what is left of a batch; False where it was left to SLURM."""
    grid = tuning.grid(trials)
    everything = cells(grid)
    states = {cell: cell.status() for cell in everything}
    left = [cell for cell in everything if states[cell] != "done"]
    command = ["tune", *(part for file in given.config for part in ("-c", str(file.resolve())))]
    command += ["--space", str(given.space.resolve()), "--out", str(given.out), "--cell"]
    if given.engine == "slurm":
        left = [cell for cell in left if states[cell] != "failed"]
        if left:
            queue_on_slurm(given, tuning.folder / "slurm", left, {}, grid.threads, command, console)
            console.print("when they have ended, the same command goes on with the next batch")
        return not left
    if left:
        progress = Progress(grid, states.items(), console)
        with progress.shown():
            failures = run_cells(make_engine(given, grid.threads, command), left, {}, progress.changed)
        for cell, reason in failures.items():
            if cell.attempts()[1] is None:  # no failure of the trial's own: it was killed
                raise RunError(f"{cell.key} has not ended: {reason}; the same command goes on")
    return True


def _tell(tuning: Tuning, trials: Sequence[Trial]) -> None:
    told = [_worth(trial, tuning.cells(trial)) for trial in trials]
    if all(trial.nll is None for trial in told):
        raise RunError(f"all trials of a batch have failed, the first with: {told[0].failed}")
    tuning.tell(told)


def _worth(trial: Trial, runs: Sequence[Cell]) -> Trial:
    """A trial with its mean validation NLL, or with the failure of one of its runs."""
    if failed := next((cell.attempts()[1] for cell in runs if not cell.done()), None):
        return replace(trial, failed=failed)
    found = [json.loads((cell.folder / _METRICS).read_text())["datasets"]["validation"]["nll"] for cell in runs]
    return replace(trial, nll=fmean(found))


def _say(tuning: Tuning, given: argparse.Namespace, console: Console) -> None:
    """The trials from best to worst, their spread, and the command that trains with the best."""
    best = tuning.best()
    assert best is not None  # a batch that has failed altogether is never told
    table = Table(title=f"{len(tuning.told)} trials in {tuning.folder}", title_justify="left")
    for name in ("trial", "validation NLL", *tuning.space.parameters):
        table.add_column(name)
    order = sorted(tuning.told, key=lambda trial: (trial.nll is None, trial.nll, trial.number))
    for trial in order:
        worth = f"{trial.nll:.4f}" if trial.nll is not None else f"failed: {trial.failed}"
        table.add_row(str(trial.number), worth, *(str(value) for value in trial.parameters.values()))
    console.print(table)
    found = [trial.nll for trial in tuning.told if trial.nll is not None]
    console.print(f"best {min(found):.4f}, median {median(found):.4f}, worst {max(found):.4f}", highlight=False)
    values = [f"--{name}={value}" for name, value in best.parameters.items()] if best.number else []
    files = [part for file in given.config for part in ("-c", str(file))]
    command = " ".join(["bayeslora fit", *files, *values])
    console.print(f"train with: {command}", soft_wrap=True, highlight=False, markup=False)
