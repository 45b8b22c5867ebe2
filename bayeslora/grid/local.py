"""The engine of one machine: a process a cell, so many at a time, each with a GPU of its own where there are any."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence

from bayeslora.grid.cells import LOG, Cell
from bayeslora.grid.environment import PARENT, put_right

_CONSOLE = "from bayeslora.cli import console; console()"
_POLL = 0.1  # seconds between two looks at the processes
_GRACE = 60.0  # seconds a process has to end after SIGTERM
RUNNING, FAILED, HELD = "running", "failed", "not run"


class LocalEngine:
    """Runs cells as processes of this machine.

    Args:
        jobs: How many at a time.
        threads: CPU threads of each.
        devices: The GPUs to share among them, as CUDA_VISIBLE_DEVICES names them; none where cells run on the CPU.
        command: The arguments of ``bayeslora benchmark`` that run a cell, without its key.
    """

    def __init__(self, jobs: int, threads: int, devices: Sequence[str], command: Sequence[str]) -> None:
        self.jobs, self.threads, self.devices, self.command = jobs, threads, list(devices), list(command)

    def run(
        self, cells: Sequence[Cell], needs: Mapping[Cell, Cell], changed: Callable[[Cell, str], None]
    ) -> dict[Cell, str]:
        """Run cells in their order, one that needs another's training after that one.

        Args:
            cells: The cells that are not done.
            needs: The cell that a cell waits for; one that is not among ``cells`` is done already.
            changed: Is told a cell's new status: ``running``, ``done``, ``failed``, or ``not run`` where the cell
                that it needs has failed.

        Returns:
            Why a cell has failed, or was not run; nothing for one that is done.
        """
        waiting, failures = list(cells), dict[Cell, str]()
        running: dict[Cell, tuple[subprocess.Popen[bytes], int]] = {}
        try:
            while waiting or running:
                for cell in [cell for cell in waiting if needs.get(cell) in failures]:
                    waiting.remove(cell)
                    failures[cell] = f"{needs[cell].key}, whose training it uses, has failed"
                    changed(cell, HELD)
                unfinished = {*waiting, *running}
                ready = [cell for cell in waiting if needs.get(cell) not in unfinished]
                while ready and len(running) < self.jobs:
                    cell = ready.pop(0)
                    waiting.remove(cell)
                    slot = min({*range(self.jobs)} - {slot for _, slot in running.values()})
                    running[cell] = self._start(cell, slot), slot
                    changed(cell, RUNNING)
                time.sleep(_POLL)
                for cell in [cell for cell, (process, _) in running.items() if process.poll() is not None]:
                    process, _ = running.pop(cell)
                    if not cell.done():
                        failures[cell] = _reason(cell, process.returncode)
                    changed(cell, FAILED if cell in failures else "done")
        finally:
            _end([process for process, _ in running.values()])
        return failures

    def _start(self, cell: Cell, slot: int) -> subprocess.Popen[bytes]:
        environment = dict(os.environ)
        put_right(environment, self.threads, self.devices[slot % len(self.devices)] if self.devices else "")
        environment[PARENT] = str(os.getpid())
        cell.folder.mkdir(parents=True, exist_ok=True)
        with (cell.folder / LOG).open("ab") as log:
            command = [sys.executable, "-c", _CONSOLE, "benchmark", *self.command, "--cell", cell.key]
            return subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log)


def _reason(cell: Cell, status: int) -> str:
    _, failed = cell.attempts()
    how = f"its process was ended by signal {-status}" if status < 0 else f"its process ended with status {status}"
    return failed or f"{how}; see {cell.folder / LOG}"


def _end(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """End processes in order: training saves its state first."""
    for process in processes:
        process.terminate()
    for process in processes:
        try:
            process.wait(_GRACE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
