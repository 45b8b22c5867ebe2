"""The processes of a distributed run, forked from a test: none of them has to import the package anew."""

import os
import socket
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import distributed
from torch.multiprocessing import start_processes


def on_processes(count: int, work: Callable[..., Any], *arguments: Any) -> Any:
    """What a function returns in the first of ``count`` processes that all call it with the same arguments.

    To Lightning and torch they are processes that a launcher has started, as ``torchrun`` does.

    Args:
        count: How many; they die with the test, which fails where one of them does.
        work: Connects them, as a trainer with as many ``devices`` does; gives what ``torch.save`` can write.
        arguments: Of ``work``.
    """
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    with TemporaryDirectory() as folder:
        result = Path(folder) / "result.pt"
        how = "spawn" if torch.cuda.is_initialized() else "fork"  # a GPU's context does not outlive a fork
        start_processes(_process, (count, port, result, work, arguments), nprocs=count, start_method=how)
        return torch.load(result, weights_only=True)


def _process(
    rank: int, count: int, port: int, result: Path, work: Callable[..., Any], arguments: tuple[Any, ...]
) -> None:
    torch.set_num_threads(1)  # threads of the test's process are not in its fork
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(count)}
    os.environ |= {"NODE_RANK": "0", "LOCAL_RANK": str(rank), "RANK": str(rank)}
    value = work(*arguments)
    assert distributed.get_world_size() == count
    if rank == 0:
        torch.save(value, result)
    distributed.barrier()
    distributed.destroy_process_group()
