"""The engine of a Ray cluster: a task a cell, which starts the cell's process on its worker and waits for it."""

from __future__ import annotations

import logging
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Generic

from bayeslora.errors import RunError, UsageError, in_one_line
from bayeslora.grid.cells import LOG
from bayeslora.grid.process import end_processes, how_it_ended, start_process
from bayeslora.grid.schedule import End, J
from bayeslora.signals import current_handler

_POLL = 0.2  # seconds to wait for a task before looking at the rest
_ANSWER = 20.0  # seconds that a cluster has to take a connection
_GRACE = 90.0  # seconds that cancelled tasks have: their cells save their state first


class RayEngine(Generic[J]):
    """Runs cells on the workers of a Ray cluster, which share a file system with this process.

    Ray repeats no task: it would repeat one that ran out of memory for ever. A worker that dies takes its cell's
    process along, see :func:`~bayeslora.grid.environment.end_with`, and the cell is begun again by
    :func:`~bayeslora.grid.schedule.run_cells`. When this process or the head dies, so do all tasks; the same command on
    a new cluster goes on, since what is done stands in the run folders.

    Args:
        address: A cluster's address, ``auto`` for the one that this machine belongs to, ``local`` for a new one.
        jobs: How many cells at a time; None for as many as the cluster has room for.
        threads: CPU threads of each cell, which are its claim of CPUs.
        share: Its claim of GPUs, such as 0.5; None for one where the cluster has GPUs, and none elsewhere.
        command: The arguments of the Python that run a cell, without its key, which comes last.

    Raises:
        UsageError: Ray is not installed, the cluster is not reached, or none of its nodes is large enough.
    """

    def __init__(
        self, address: str, jobs: int | None, threads: int, share: float | None, command: Sequence[str]
    ) -> None:
        self.jobs, self.threads, self.command = jobs, threads, list(command)
        self._ray = _connected(address)
        self._tasks: dict[Any, J] = {}
        try:
            self.share = _claim(self._ray, threads, share)
        except UsageError:
            self._ray.shutdown()
            raise
        claims = {"num_cpus": threads, "num_gpus": self.share, "max_retries": 0}
        self._task = self._ray.remote(**claims)(run_process)

    def room(self) -> bool:
        """Whether fewer than ``jobs`` cells are with the cluster, which queues what it has no room for."""
        return self.jobs is None or len(self._tasks) < self.jobs

    def start(self, cell: J) -> None:
        """Give a cell to the cluster."""
        own = [*self.command, cell.key], self.threads, cell.folder / LOG, Path.cwd()
        task = self._task.options(name=cell.key).remote(*own)
        self._tasks[task] = cell

    def ended(self) -> dict[J, End]:
        """The cells whose tasks have ended."""
        if not self._tasks:
            return {}
        try:
            tasks, _ = self._ray.wait(list(self._tasks), num_returns=1, timeout=_POLL)
        except self._ray.exceptions.RayError as error:
            raise RunError(f"the Ray cluster is gone ({in_one_line(error)}); the same command goes on") from error
        return {self._tasks.pop(task): self._end(task) for task in tasks}

    def stop(self) -> None:
        """Cancel what still runs, give it time to save its state, and leave the cluster."""
        tasks = list(self._tasks)
        self._tasks.clear()
        if self._ray.is_initialized():
            for task in tasks:
                self._ray.cancel(task)
            if tasks:
                self._ray.wait(tasks, num_returns=len(tasks), timeout=_GRACE)
            self._ray.shutdown()

    def _end(self, task: Any) -> End:
        errors = self._ray.exceptions
        try:
            return End(how_it_ended(self._ray.get(task)))
        except (errors.WorkerCrashedError, errors.OutOfMemoryError, errors.NodeDiedError) as error:
            return End(f"its worker was lost: {in_one_line(error)}", lost=True)
        except errors.RayError as error:
            return End(f"its task has failed: {in_one_line(error)}")


def run_process(command: Sequence[str], threads: int, log: Path, directory: Path) -> int:
    """The body of a task: start a cell's process with the GPUs that Ray has given to the task, and wait for it.

    Args:
        command: The arguments of the Python.
        threads: CPU threads.
        log: File that what it says is added to.
        directory: Where relative paths of its command and configurations begin.

    Returns:
        Its exit status as a value, since Ray takes a ``SystemExit`` for the death of the worker.
    """
    import ray

    process = start_process(command, threads, ",".join(map(str, ray.get_gpu_ids())), log, directory)
    try:
        return process.wait()
    finally:
        end_processes([process])  # the task was cancelled


def _connected(address: str) -> Any:
    """Ray, connected to a cluster."""
    try:
        import ray
    except ImportError:
        raise UsageError("--engine ray needs Ray, which is not installed; pip install 'bayeslora[ray]'") from None
    own: dict[str, Any] = {"include_dashboard": False} if address == "local" else {}
    host, _, port = address.rpartition("://")[2].rpartition(":")
    try:
        if host and port.isdecimal():
            socket.create_connection((host, int(port)), _ANSWER).close()  # Ray itself asks again for many minutes
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **own)
    except Exception as error:  # a dozen types: no cluster, another version of Python or Ray, a token that is missing
        raise UsageError(
            f"--address is {address!r}, and Ray has not answered there: {in_one_line(error)}; give the address of a "
            "cluster, auto, or local"
        ) from error
    if (handler := current_handler()) is not None:
        handler.install()  # Ray has put its own in front
    return ray


def _claim(ray: Any, threads: int, share: float | None) -> float:
    """The share of a GPU that each cell claims; refused where no node can ever give it: Ray would wait for ever."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if share is None:
        share = float(any(node.get("GPU", 0) >= 1 for node in nodes))
    if not any(node.get("CPU", 0) >= threads and node.get("GPU", 0) >= share for node in nodes):
        sizes = "; ".join(sorted({f"{node.get('CPU', 0):g} CPUs and {node.get('GPU', 0):g} GPUs" for node in nodes}))
        raise UsageError(f"a cell needs {threads} CPUs and {share:g} of a GPU on one node; the cluster's have {sizes}")
    return share
