"""The command ``bayeslora ensemble``: trains what is missing of an ensemble, alone or beside other workers."""

from __future__ import annotations

import os
from argparse import ArgumentError, Namespace
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import torch

from bayeslora.commands import parsers
from bayeslora.commands.engines import check_engine_options
from bayeslora.commands.lightning import CommandLine, run, run_folder
from bayeslora.commands.member_jobs import train_on_engine
from bayeslora.commands.member_work import NothingLeft, Work
from bayeslora.errors import RunError, UsageError, require, require_choice
from bayeslora.grid.environment import end_with
from bayeslora.models.memory import give_back
from bayeslora.posteriors.members.store import DAMAGED, DONE, FAILED, ids_of

MODES = ("auto", "joint", "sequential")


class _Planned(Exception):
    """It is known which members are asked for, and where: nothing has to be loaded."""


class _EnsembleLine(CommandLine):
    """``fit`` of a module that has members."""

    def members(self) -> Any:
        """How many members, or which, the configuration asks for."""
        model = self.config[self.subcommand].model
        options = model.get("init_args", {})
        if "members" not in options:
            raise UsageError(f"{model.class_path} has no members; give -c method/ensemble")
        return options.members


def _plan_line(work: Work) -> type[CommandLine]:
    class PlanLine(_EnsembleLine):
        """Reads what is asked for, and goes no further."""

        def before_instantiate_classes(self) -> None:
            """Take up the run folder and the members; no class is made."""
            work.plan(run_folder(self.config[self.subcommand].trainer), self.members())
            raise _Planned

    return PlanLine


def _group_line(work: Work) -> type[CommandLine]:
    class GroupLine(_EnsembleLine):
        """``fit`` of one group of members."""

        def before_instantiate_classes(self) -> None:
            """Choose the group's members and its folder, and go on from its last checkpoint where there is one."""
            config = self.config[self.subcommand]
            options = config.model.init_args
            folder = work.choose(run_folder(config.trainer), self.members())
            if config.trainer.devices == "auto":
                config.trainer.devices = 1  # whatever task of a scheduler this is: members are not spread over ranks
            options.members = work.group
            options.members_per_pass = work.members_per_pass or options.members_per_pass
            config.trainer.default_root_dir = str(folder)
            config.ckpt_path = "last" if (folder / "checkpoints" / "last.ckpt").exists() else None
            assert work.store is not None
            self.store = work.store.folder
            super().before_instantiate_classes()

    return GroupLine


def main(args: Sequence[str]) -> int:
    """Run ``bayeslora ensemble``; returns the exit status."""
    try:
        own, rest = parsers.ensemble().parse_known_args(list(args))
    except ArgumentError as error:
        raise UsageError(str(error)) from None
    end_with(os.environ)
    _check(own)
    if own.threads is not None:
        torch.set_num_threads(own.threads)
    wanted = [own.member] if own.member is not None else None if own.members is None else _parse(own.members)
    work = Work(wanted, own.mode, waits=own.member is not None)
    if own.engine is not None:
        return _run_on_engine(own, rest, work)
    while _train_group(work, rest):
        pass
    return _report(work)


def _check(own: Namespace) -> None:
    """Refuse options that do not go together; ``--jobs`` alone means this machine."""
    require_choice("mode", own.mode, MODES)
    require("--threads", own.threads, own.threads is None or own.threads >= 1, "1 or more")
    if own.jobs is not None and own.engine is None:
        own.engine = "local"
    check_engine_options(own)
    if own.engine is not None and (own.member is not None or own.mode != "auto"):
        raise UsageError(
            f"--engine {own.engine} trains each member in a process of its own; leave --member and --mode away"
        )
    if own.member is not None:
        if own.members is not None:
            raise UsageError("--member and --members are both given; give the id of one, or how many or which")
        require("member", own.member, own.member >= 0, "an id of 0 or above")


def _run_on_engine(own: Namespace, args: list[str], work: Work) -> int:
    """Train every member that is missing in a process of its own; the exit status, 1 where a wanted one has failed."""
    with suppress(_Planned):
        run(["fit", *args], _plan_line(work))
    assert work.store is not None
    assert work.wanted is not None
    if not train_on_engine(own, args, work.root, work.store, work.wanted):
        return 0
    status = _report(work)
    return status or int(not {*work.wanted} <= {*work.store.members(DONE)})


def _train_group(work: Work, args: list[str]) -> bool:
    """Train one group of members; whether there was one."""
    try:
        run(["fit", *args], _group_line(work))
    except NothingLeft:
        return False
    except torch.OutOfMemoryError:
        if work.mode != "auto" or not work.split():
            raise
    except RunError:
        if work.store is None or not set(work.group) <= set(work.store.members(FAILED)):
            raise
    finally:
        if work.store is not None:
            work.store.locks.release()
    give_back()  # here, where no exception holds the failed attempt any more
    work.ended()
    return True


def _report(work: Work) -> int:
    """Say where every member stands; put what is done together as the run's posterior."""
    store, wanted = work.store, work.wanted
    assert store is not None
    assert wanted is not None
    done, failed, damaged = (store.members(status) for status in (DONE, FAILED, DAMAGED))
    elsewhere = {m: store.locks.holder(m) for m in wanted if m not in (*done, *failed, *damaged)}
    line = f"members done: {list(done)}; failed: {list(failed)}; with other workers: {elsewhere}"
    print(f"{line}; damaged: {list(damaged)}" if damaged else line)
    if work.waits and wanted[0] in failed:
        raise RunError(f"member {wanted[0]} of {store.folder} has failed: {store.record(wanted[0])['ended']}")
    if work.waits and damaged:  # the member that was asked for is done, the others are other commands' to make again
        return 0
    if done:
        store.assemble(work.root / "posterior")
        return 0
    raise RunError(f"no member of {store.folder} is done")


def _parse(text: str) -> list[int]:
    try:
        ids = [int(part) for part in text.split(",")]
    except ValueError as error:
        raise UsageError(f"members is {text!r}; allowed: a number, or ids such as 0,3,7") from error
    return ids_of(ids if "," in text else ids[0])
