"""A tuning on disk: its trials in one file that one process writes, a whole batch at a time, and as a grid of cells."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bayeslora.errors import UsageError
from bayeslora.files import read_record, write_record
from bayeslora.grid.cells import Cell, cell_of
from bayeslora.grid.proposals import Trial, inside, propose
from bayeslora.grid.space import Space
from bayeslora.grid.specification import Grid, Method, Part

TRIALS, DATASET = "trials.json", "trial"


class Tuning:
    """The trials of a space for one configuration.

    Args:
        folder: Where everything is.
        files: The configuration.
        space: What is searched.
        first: What the configuration says of the space's parameters: trial 0.
        version: Of Optuna.

    Raises:
        UsageError: the folder holds the trials of another space, or those that another version of Optuna has proposed.
    """

    def __init__(
        self, folder: Path, files: Sequence[Path], space: Space, first: Mapping[str, Any], version: str
    ) -> None:
        self.folder, self.files, self.space = folder, tuple(files), space
        self._first = Trial(0, dict(first))
        self._identity = {"optuna": version, "space": _plain(asdict(space)), "first": dict(first)}
        self.told = self._read()

    def batch(self) -> list[Trial]:
        """The trials that come next; none when all have been told. The same ones for the same results."""
        left = self.space.trials - len(self.told)
        if not self.told:
            return [self._first, *propose(self.space, [self._first], min(self.space.batch, left) - 1)]
        return propose(self.space, self.told, min(self.space.batch, left))

    def tell(self, trials: Sequence[Trial]) -> None:
        """Write down what a whole batch was worth.

        Args:
            trials: The batch, each with its likelihood or its failure.
        """
        told = [*self.told, *trials]
        write_record(self.folder / TRIALS, {**self._identity, "trials": [asdict(trial) for trial in told]})
        self.told = told

    def best(self) -> Trial | None:
        """The trial of least validation NLL, the first of equal ones; None where all have failed."""
        done = [trial for trial in self.told if trial.nll is not None]
        return min(done, key=lambda trial: (trial.nll, trial.number), default=None)

    def starts_inside(self) -> bool:
        """Whether the configuration as it is lies in the space, so that later proposals know of it."""
        return inside(self.space, self._first.parameters)

    def grid(self, trials: Sequence[Trial]) -> Grid:
        """Trials as a grid of runs: each is a method, trial 0 the configuration without anything on top.

        Args:
            trials: The trials.
        """
        rows = {
            str(trial.number): Method(str(trial.number), arguments=trial.parameters if trial.number else None)
            for trial in trials
        }
        return Grid(
            file=self.files[-1],
            title="trials",
            out=self.folder,
            seeds=self.space.seeds,
            threads=self.space.threads,
            reference=next(iter(rows)),
            common=Part("common", self.files),
            datasets={DATASET: Part(DATASET)},
            methods=rows,
        )

    def cells(self, trial: Trial) -> list[Cell]:
        """The runs of a trial, one a seed."""
        grid = self.grid([trial])
        return [cell_of(grid, f"{DATASET}/{trial.number}/{seed}") for seed in self.space.seeds]

    def _read(self) -> list[Trial]:
        file = self.folder / TRIALS
        if not file.exists():
            return []
        held = read_record(file, "move it away, and the trials are collected again from their folders")
        for name, value in self._identity.items():
            if held[name] != value:
                raise UsageError(
                    f"{self.folder} holds the trials of another tuning: {name} was {held[name]!r} and is {value!r}; "
                    "give another --out"
                )
        return [Trial(**trial) for trial in held["trials"]]


def _plain(value: Any) -> Any:
    """The value as JSON gives it back."""
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    return [_plain(inner) for inner in value] if isinstance(value, tuple | list) else value
