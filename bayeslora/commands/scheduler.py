"""Runs under SLURM: one process is no part of SLURM's tasks, and Lightning puts no run back in the queue."""

from __future__ import annotations

import os
from typing import Any

from lightning.fabric.plugins.environments import ClusterEnvironment, SLURMEnvironment, TorchElasticEnvironment
from lightning.pytorch.utilities import rank_zero_only


def leave_slurms_tasks(trainer: Any) -> None:
    """Forget SLURM's variables where a run is a single process, whichever of SLURM's tasks it was started as.

    Lightning takes a process with ``SLURM_NTASKS`` for a rank of a distributed run. One of several runs that ``srun``
    started side by side would then write no logs and hold no lock on its folder, as its ``SLURM_PROCID`` is above 0.

    Args:
        trainer: The trainer's options; ``devices`` and ``num_nodes`` say how many processes a run has.
    """
    alone = str(trainer.devices).strip("[] ") in ("1", "0") or os.environ.get("SLURM_NTASKS", "1") == "1"
    if trainer.num_nodes > 1 or not alone or TorchElasticEnvironment.detect() or "LOCAL_RANK" in os.environ:
        return
    found = [name for name in os.environ if name.startswith("SLURM_")]
    for name in found:
        del os.environ[name]
    if "SLURM_PROCID" in found:
        rank_zero_only.rank = 0  # type: ignore[attr-defined]  # which was read when Lightning was imported


def scheduler_plugins(given: list[Any]) -> list[ClusterEnvironment]:
    """SLURM without Lightning's requeueing, where a run is spread over SLURM's tasks and ``given`` has no environment.

    Requeueing saves from inside a signal handler, and what it saves is later loaded in place of what is asked for.
    """
    if any(isinstance(plugin, ClusterEnvironment) for plugin in given):
        return []
    spread = SLURMEnvironment.detect() and not TorchElasticEnvironment.detect()
    return [SLURMEnvironment(auto_requeue=False)] if spread else []
