"""The environment of a cell's process: its devices and threads said explicitly, nothing left of a launcher's ranks."""

from __future__ import annotations

import ctypes
import os
import platform
import signal
import socket
import sys
from collections.abc import Mapping, MutableMapping
from typing import Any

PARENT = "BAYESLORA_PARENT"  # process id of an engine, with which its cells end
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
DEVICES = "CUDA_VISIBLE_DEVICES"
_LAUNCHERS = ("SLURM_", "PMI_", "PMIX_", "OMPI_", "TORCHELASTIC_", "SRUN_")
_RANKS = (
    *("RANK", "LOCAL_RANK", "GROUP_RANK", "ROLE_RANK", "NODE_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"),
    *("GROUP_WORLD_SIZE", "ROLE_WORLD_SIZE", "ROLE_NAME", "MASTER_ADDR", "MASTER_PORT"),
)
_PR_SET_PDEATHSIG = 1


def put_right(environment: MutableMapping[str, str], threads: int, devices: str | None = None) -> None:
    """Make an environment a cell's: it is alone, whatever started it. To be done before torch is imported.

    Lightning takes a process within a SLURM job for one of its ranks, loads checkpoints that a requeued job has left
    and logs on rank 0 alone; torch takes its threads from the environment.

    Args:
        environment: The environment, which is changed.
        threads: Number of CPU threads.
        devices: The GPUs to be seen, as CUDA_VISIBLE_DEVICES names them, ``""`` for none; None leaves them as they are.
    """
    for name in [name for name in environment if name.startswith(_LAUNCHERS) or name in _RANKS]:
        del environment[name]
    environment.update(dict.fromkeys(THREADS, str(threads)))
    environment["MASTER_PORT"] = str(free_port())
    environment.setdefault("TOKENIZERS_PARALLELISM", "false")
    if devices is not None:
        environment[DEVICES] = devices


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def environment_record(environment: Mapping[str, str], threads: int) -> dict[str, Any]:
    """What a cell saw, for its run folder.

    Args:
        environment: The environment variables of the process.
        threads: Number of CPU threads of a cell.
    """
    return {"host": platform.node(), "devices": environment.get(DEVICES), "threads": threads}


def end_with(environment: Mapping[str, str]) -> None:
    """End this process, as SIGTERM does, when the engine that started it dies; on Linux alone, elsewhere it goes on."""
    parent = environment.get(PARENT)
    if parent is None or not sys.platform.startswith("linux"):
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != int(parent):  # it has died before it could be asked for
        os.kill(os.getpid(), signal.SIGTERM)
