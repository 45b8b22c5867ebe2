"""The engine of one machine: a process a cell, so many at a time, each with a GPU of its own where there are any."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Sequence
from typing import Generic

from bayeslora.grid.cells import LOG
from bayeslora.grid.process import end_processes, how_it_ended, start_process
from bayeslora.grid.schedule import End, J

_POLL = 0.1  # seconds between two looks at the processes


class LocalEngine(Generic[J]):
    """Runs cells as processes of this machine.

    Args:
        jobs: How many at a time.
        threads: CPU threads of each.
        devices: The GPUs to share among them, as CUDA_VISIBLE_DEVICES names them; none where cells run on the CPU.
        command: The arguments of the Python that run a cell, without its key, which comes last.
    """

    def __init__(self, jobs: int, threads: int, devices: Sequence[str], command: Sequence[str]) -> None:
        self.jobs, self.threads, self.devices, self.command = jobs, threads, list(devices), list(command)
        self._running: dict[J, tuple[subprocess.Popen[bytes], int]] = {}

    def room(self) -> bool:
        """Whether fewer than ``jobs`` cells run."""
        return len(self._running) < self.jobs

    def start(self, cell: J) -> None:
        """Start a cell, on the first GPU that no other has."""
        slot = min({*range(self.jobs)} - {slot for _, slot in self._running.values()})
        devices = self.devices[slot % len(self.devices)] if self.devices else ""
        process = start_process([*self.command, cell.key], self.threads, devices, cell.folder / LOG)
        self._running[cell] = process, slot

    def ended(self) -> dict[J, End]:
        """The cells that have ended within the last tenth of a second."""
        time.sleep(_POLL)
        ended = {c: End(how_it_ended(p.returncode)) for c, (p, _) in self._running.items() if p.poll() is not None}
        for cell in ended:
            del self._running[cell]
        return ended

    def stop(self) -> None:
        """End what still runs."""
        end_processes([process for process, _ in self._running.values()])
        self._running.clear()
