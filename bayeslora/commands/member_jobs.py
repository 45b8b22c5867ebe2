"""The members of an ensemble as jobs of an engine: ``bayeslora ensemble --member K``, a process each."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from bayeslora.commands.engines import make_engine, queue_on_slurm
from bayeslora.grid.schedule import run_cells
from bayeslora.posteriors.members.store import DONE, FAILED, MemberStore


@dataclass(frozen=True)
class MemberJob:
    """One member of an ensemble.

    Attributes:
        member: Its id.
        store: The members of its ensemble.
    """

    member: int
    store: MemberStore

    @property
    def key(self) -> str:
        """What ``--member`` is given."""
        return str(self.member)

    @property
    def folder(self) -> Path:
        """Where the log of its process is."""
        return self.store.folder.absolute() / "logs" / f"{self.member:03d}"

    def done(self) -> bool:
        """Whether its files are whole."""
        return self.store.status(self.member) == DONE

    def attempts(self) -> tuple[int, str | None]:
        """Whether it has failed, and why; the store does not count attempts."""
        if self.store.status(self.member) != FAILED:
            return 0, None
        return 1, str(self.store.record(self.member)["ended"])


def train_on_engine(
    given: argparse.Namespace, args: Sequence[str], root: Path, store: MemberStore, wanted: Sequence[int]
) -> bool:
    """Train what is missing of an ensemble, each member in a process of its own; those that have failed are left.

    Args:
        given: The options of ``bayeslora ensemble`` itself.
        args: Its other options, which are those of ``bayeslora fit``.
        root: The ensemble's run folder.
        store: Its members.
        wanted: Ids of the members that are asked for.

    Returns:
        Whether they have been trained, as far as they can be; False where that was left to SLURM.
    """
    console, threads = Console(), given.threads or 1
    jobs = [MemberJob(member, store) for member in wanted if store.status(member) not in (DONE, FAILED)]
    command = ["ensemble", *args, "--threads", str(threads), "--member"]
    if jobs and given.engine == "slurm":
        queue_on_slurm(given, root.absolute() / "slurm", jobs, {}, threads, command, console)
        return False

    def changed(job: MemberJob, status: str) -> None:
        """Say it."""
        console.print(f"member {job.key}: {status}", markup=False, highlight=False)

    if jobs:
        failures = run_cells(make_engine(given, threads, command), jobs, {}, changed)
        for job, reason in failures.items():
            console.print(f"failed: member {job.key}: {reason}", markup=False, highlight=False, soft_wrap=True)
    return True
