"""The process of a cell: the same command on every engine, with devices, threads and parent said explicitly."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from bayeslora.grid.environment import PARENT, put_right

PROGRAM = ("-c", "from bayeslora.cli import console; console()")  # the arguments of Python that run ``bayeslora``
_GRACE = 60.0  # seconds a process has to end after SIGTERM


def start_process(
    command: Sequence[str], threads: int, devices: str, log: Path, directory: Path | None = None
) -> subprocess.Popen[bytes]:
    """Start a Python of its own for a cell, the same as this one, which ends with it.

    Args:
        command: Its arguments.
        threads: CPU threads.
        devices: The GPUs that it sees, as CUDA_VISIBLE_DEVICES names them; ``""`` for none.
        log: File that what it says is added to.
        directory: Where it works; None for where this process does.
    """
    environment = dict(os.environ)
    put_right(environment, threads, devices)
    environment[PARENT] = str(os.getpid())
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as file:
        return subprocess.Popen(
            [sys.executable, *command],
            env=environment,
            cwd=directory,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
        )


def end_processes(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """End processes in order: training saves its state first, for which it has a minute."""
    for process in processes:
        process.terminate()
    for process in processes:
        try:
            process.wait(_GRACE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def how_it_ended(status: int) -> str:
    """The end of a process in words, from its exit status; a negative one is a signal's number."""
    return f"its process was ended by signal {-status}" if status < 0 else f"its process ended with status {status}"
