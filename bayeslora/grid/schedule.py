"""Cells in the order they need one another, on any engine: what can start, what failed, what is begun once more."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

from bayeslora.grid.cells import LOG

RUNNING, FAILED, HELD, AGAIN = "running", "failed", "not run", "lost; begun again"
ATTEMPTS = 3  # of one cell in one command, where what ran it has died


@dataclass(frozen=True)
class End:
    """How the process of a cell has ended.

    Attributes:
        how: In words.
        lost: Whether what ran it has died, a worker or its machine: nothing that the cell itself did.
    """

    how: str
    lost: bool = False


class Job(Protocol):
    """What an engine can run: a cell of a grid, or a member of an ensemble. Its folder knows what became of it."""

    @property
    def key(self) -> str:
        """What the command that runs it is given last."""

    @property
    def folder(self) -> Path:
        """Absolute folder, where what its process says is kept."""

    def done(self) -> bool:
        """Whether it has ended as it should."""

    def attempts(self) -> tuple[int, str | None]:
        """How often it was begun, and why the last attempt failed; None where it did not, or was killed."""


J = TypeVar("J", bound=Job)


class Engine(Protocol[J]):
    """What runs cells: each as a process of its own, which is all that an engine knows about it."""

    def room(self) -> bool:
        """Whether one more cell can be started now."""

    def start(self, cell: J) -> None:
        """Start the process of a cell."""

    def ended(self) -> Mapping[J, End]:
        """The cells whose process has ended since this was asked last; waits a moment before it answers."""

    def stop(self) -> None:
        """End in order what still runs: training saves its state first."""


def run_cells(
    engine: Engine[J], cells: Sequence[J], needs: Mapping[J, J], changed: Callable[[J, str], None]
) -> dict[J, str]:
    """Run cells in their order, one that needs another's training after that one.

    What an engine says of a cell is how its process ended. Whether the cell is done, its run folder says. A cell whose
    worker was lost is begun again at once, until it has been begun three times.

    Args:
        engine: What runs them.
        cells: The cells that are not done.
        needs: The cell that a cell waits for; one that is not among ``cells`` is done already.
        changed: Is told a cell's new status: ``running``, ``done``, ``failed``, ``lost; begun again``, or ``not run``
            where the cell that it needs has failed.

    Returns:
        Why a cell has failed, or was not run; nothing for one that is done.
    """
    waiting, running, failures, lost = list(cells), set[J](), dict[J, str](), Counter[J]()
    try:
        while waiting or running:
            for cell in [cell for cell in waiting if needs.get(cell) in failures]:
                waiting.remove(cell)
                failures[cell] = f"{needs[cell].key}, whose training it uses, has failed"
                changed(cell, HELD)
            unfinished = {*waiting, *running}
            ready = [cell for cell in waiting if needs.get(cell) not in unfinished]
            while ready and engine.room():
                cell = ready.pop(0)
                waiting.remove(cell)
                engine.start(cell)
                running.add(cell)
                changed(cell, RUNNING)
            for cell, end in engine.ended().items():
                running.discard(cell)
                lost[cell] += end.lost
                if cell.done():
                    changed(cell, "done")
                elif end.lost and lost[cell] < ATTEMPTS:
                    waiting.insert(0, cell)
                    changed(cell, AGAIN)
                else:
                    failures[cell] = _reason(cell, end)
                    changed(cell, FAILED)
    finally:
        engine.stop()
    return failures


def _reason(cell: Job, end: End) -> str:
    _, failed = cell.attempts()
    return failed or f"{end.how}; see {cell.folder / LOG}"
