"""The options that choose an engine, and the engine they choose: what every command that runs cells shares."""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from bayeslora.errors import UsageError, require
from bayeslora.grid.environment import DEVICES
from bayeslora.grid.local import LocalEngine
from bayeslora.grid.process import PROGRAM
from bayeslora.grid.ray_cluster import RayEngine
from bayeslora.grid.schedule import Engine, J
from bayeslora.grid.slurm import submit, write_arrays

_ENGINES = ("local", "ray", "slurm")
_OF_ONE = {"address": "ray", "gpu_share": "ray", "submit": "slurm", "sbatch": "slurm"}


def add_engine_options(parser: argparse.ArgumentParser, default: str | None = "local") -> None:
    """Add the options that choose an engine to a command's parser.

    Args:
        parser: The command's parser.
        default: The engine where none is chosen; None where the command then does the work itself.
    """
    without = default or "none: this process"
    parser.add_argument(
        "--engine", default=default, choices=_ENGINES, help=f"processes on this machine, on Ray or on SLURM ({without})"
    )
    parser.add_argument("--jobs", type=int, metavar="N", help="most processes at a time (local: 1; else no limit)")
    parser.add_argument("--address", help="ray: a cluster's address, auto, or local for a new one (local)")
    parser.add_argument("--gpu-share", type=float, metavar="X", help="ray: GPUs that a process claims, such as 0.5 (1)")
    parser.add_argument("--submit", action="store_true", default=None, help="slurm: submit the job arrays as well")
    parser.add_argument(
        "--sbatch", action="append", metavar="OPTION", help="slurm: an option of the arrays, --sbatch=--partition=gpu"
    )


def check_engine_options(given: argparse.Namespace) -> None:
    """Refuse what no engine can do, and options that belong to another engine than the one that was chosen."""
    require("--jobs", given.jobs, given.jobs is None or given.jobs >= 1, "1 or more")
    share = given.gpu_share
    holds = share is None or 0 <= share <= 1 or share.is_integer()
    require("--gpu-share", share, holds, "0 to 1, or a whole number")
    for name, engine in _OF_ONE.items():
        if getattr(given, name) is not None and given.engine != engine:
            raise UsageError(f"--{name.replace('_', '-')} belongs to --engine {engine}; --engine is {given.engine}")


def make_engine(given: argparse.Namespace, threads: int, command: Sequence[str]) -> Engine[Any]:
    """The engine that was chosen; SLURM is none, since it runs cells when this process has ended.

    Args:
        given: The options of :func:`add_engine_options`.
        threads: CPU threads of a cell.
        command: The arguments of ``bayeslora`` that run a cell, without its key, which comes last.
    """
    if given.engine == "ray":
        return RayEngine(given.address or "local", given.jobs, threads, given.gpu_share, [*PROGRAM, *command])
    return LocalEngine(given.jobs or 1, threads, _gpus(), [*PROGRAM, *command])


def queue_on_slurm(
    given: argparse.Namespace,
    folder: Path,
    cells: Sequence[J],
    needs: Mapping[J, J],
    threads: int,
    command: Sequence[str],
    console: Console,
) -> None:
    """Write the job arrays of some cells, and submit them where that was asked for.

    Args:
        given: The options of :func:`add_engine_options`.
        folder: Where the arrays are.
        cells: The cells that are not done.
        needs: The cell whose training a cell uses.
        threads: CPU threads of a cell.
        command: The arguments of ``bayeslora`` that run a cell, without its key, which comes last.
        console: Where it is said.
    """
    script = write_arrays(folder, cells, needs, [*PROGRAM, *command], threads, given.jobs, given.sbatch or ())
    if given.submit:
        text = f"{len(cells)} runs are queued, as jobs {', '.join(submit(script))}"
    else:
        text = f"{len(cells)} runs are written; submit them with: bash {script}"
    console.print(text, soft_wrap=True, highlight=False, markup=False)


def _gpus() -> list[str]:
    """The GPUs that are to be seen, as CUDA_VISIBLE_DEVICES names them."""
    import torch

    if not torch.cuda.is_available():
        return []
    named = os.environ.get(DEVICES, "")
    return named.split(",") if named else [str(number) for number in range(torch.cuda.device_count())]
