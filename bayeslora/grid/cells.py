"""The cells of a grid: one method on one dataset with one seed, its run folder, and what that says of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from bayeslora.errors import UsageError
from bayeslora.files import PREDICTION_FILE, file_checksum, read_record, write_record
from bayeslora.grid.specification import Grid

PREDICTIONS = f"test/{PREDICTION_FILE}"  # in a run folder
LAST = "checkpoints/last.ckpt"
CELL, TRAINED, DONE, ATTEMPTS, LOG = "cell.json", "trained.json", "done.json", "attempts.json", "cell.log"
_LOCK = ".cell.lock"
_RESULTS = ("checkpoints", "members", "posterior", "test", "run.json")
_REMEDY = "move its run folder away, and the cell is made again"


@dataclass(frozen=True)
class Cell:
    """One run of a grid.

    Attributes:
        dataset: Name of its dataset.
        method: Name of its method.
        seed: Its seed.
        folder: Its run folder, absolute.
    """

    dataset: str
    method: str
    seed: int
    folder: Path

    @property
    def key(self) -> str:
        """What ``--cell`` calls it: ``dataset/method/seed``."""
        return f"{self.dataset}/{self.method}/{self.seed}"

    # ---- what its folder says

    def adopt(self, document: Mapping[str, Any]) -> None:
        """Write down what the cell is, or check that the folder's is this one.

        Args:
            document: What its results depend on, see :mod:`bayeslora.grid.fingerprint`.

        Raises:
            UsageError: the folder holds a run of another configuration, or of none that is known.
        """
        self.check(document)
        if not (self.folder / CELL).exists():
            self.folder.mkdir(parents=True, exist_ok=True)
            write_record(self.folder / CELL, dict(document))

    def check(self, document: Mapping[str, Any]) -> None:
        """Refuse a folder that is another cell's; one that holds nothing is nobody's. See :meth:`adopt`."""
        held = self._read(CELL)
        if held is None:
            if found := [name for name in _RESULTS if (self.folder / name).exists()]:
                raise UsageError(
                    f"{self.folder} holds a run ({', '.join(found)}) that no grid has made; move it away, or give "
                    "another --out"
                )
        elif held != document:
            raise UsageError(
                f"{self.folder} holds a run of another configuration: {_difference(held, document)}; move it away, or "
                "give another --out"
            )

    def trained(self) -> bool:
        """Whether its training has ended, and the checkpoint is the one it ended with."""
        return self._whole(TRAINED, LAST)

    def done(self) -> bool:
        """Whether its test has ended, and the predictions are the ones it ended with."""
        return self._whole(DONE, PREDICTIONS)

    def end(self, mark: str) -> None:
        """Mark that its training (``TRAINED``) or all of it (``DONE``) has ended; the mark is written last."""
        file = LAST if mark == TRAINED else PREDICTIONS
        write_record(self.folder / mark, {"file": file, "content": file_checksum(self.folder / file)})

    def attempts(self) -> tuple[int, str | None]:
        """How often it was begun, and why the last attempt failed; None where it did not, or was killed."""
        held = self._read(ATTEMPTS) or {}
        return held.get("attempts", 0), held.get("failed")

    def note_attempt(self, environment: Mapping[str, Any]) -> None:
        """Count one more attempt, and write down the environment that it sees."""
        count, _ = self.attempts()
        write_record(self.folder / ATTEMPTS, {"attempts": count + 1, "failed": None, "environment": dict(environment)})

    def note_failure(self, reason: str) -> None:
        """Write down why the attempt that was counted last has failed."""
        write_record(self.folder / ATTEMPTS, {**(self._read(ATTEMPTS) or {"attempts": 1}), "failed": reason})

    def status(self) -> str:
        """``done``, ``failed``, ``begun`` or ``waiting``, for a folder that :meth:`check` has passed."""
        if self.done():
            return "done"
        count, failed = self.attempts()
        return "failed" if failed else "begun" if count else "waiting"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes from working on the cell within the block; wait for one that does, until it ends."""
        self.folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.folder / _LOCK, fallback_to_soft=False)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            print(f"waiting for another process that works on {self.key}", flush=True)
            lock.acquire()
        try:
            yield
        finally:
            lock.release()

    def _whole(self, mark: str, file: str) -> bool:
        held = self._read(mark)
        return (
            held is not None and (self.folder / file).is_file() and file_checksum(self.folder / file) == held["content"]
        )

    def _read(self, name: str) -> dict[str, Any] | None:
        file = self.folder / name
        return read_record(file, _REMEDY) if file.is_file() else None


def cells(grid: Grid) -> list[Cell]:
    """All cells of a grid, dataset by dataset and method by method; those of whose training others make use first."""
    rows = sorted(grid.methods, key=lambda method: grid.methods[method].of is not None)
    return [cell_of(grid, f"{d}/{m}/{seed}") for d in grid.datasets for m in rows for seed in grid.seeds]


def cell_of(grid: Grid, key: str) -> Cell:
    """A cell by its key; its seed may be another than those of the grid.

    Args:
        grid: The grid of runs.
        key: The cell's key, as it stands in the grid's tables.

    Raises:
        UsageError: no such key.
    """
    dataset, _, rest = key.partition("/")
    method, _, seed = rest.partition("/")
    if dataset not in grid.datasets or method not in grid.methods or not seed.isdecimal():
        raise UsageError(
            f"cell is {key!r}; allowed: DATASET/METHOD/SEED with a dataset of {', '.join(grid.datasets)} and a method "
            f"of {', '.join(grid.methods)}"
        )
    return Cell(dataset, method, int(seed), grid.out / dataset / method / f"seed-{int(seed)}")


def training_cell(grid: Grid, cell: Cell) -> Cell:
    """The cell whose training a cell uses; itself, where it trains or needs no training.

    Args:
        grid: The grid of runs.
        cell: The cell.
    """
    method = grid.training(cell.method)
    return replace(cell, method=method, folder=grid.out / cell.dataset / method / f"seed-{cell.seed}")


def _difference(held: Any, wanted: Any, path: str = "") -> str:
    """The first place where two documents differ, in words."""
    if isinstance(held, Mapping) and isinstance(wanted, Mapping):
        for key in sorted({*held, *wanted}):
            if held.get(key) != wanted.get(key):
                return _difference(held.get(key), wanted.get(key), f"{path} {key}".strip())
    return f"{path} was {held!r} and is {wanted!r}"
