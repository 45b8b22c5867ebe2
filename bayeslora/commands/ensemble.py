"""The command ``bayeslora ensemble``: trains what is missing of an ensemble, alone or beside other workers."""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from bayeslora.commands import parsers
from bayeslora.commands.lightning import CommandLine, run, run_folder
from bayeslora.errors import RunError, UsageError, require, require_choice
from bayeslora.models.memory import give_back
from bayeslora.posteriors.members.store import DAMAGED, DONE, FAILED, FOLDER, MemberStore

MODES = ("auto", "joint", "sequential")
WORK = "begun"
_LOOK_AGAIN = 1.0  # seconds, while another process trains the one member that is wanted


class _NothingLeft(Exception):
    """Every member is done, has failed, or is in the hands of another worker."""


class Work:
    """Which members to train next, and in which run folder.

    Members are trained in groups, each in a run folder of its own, ``members/begun/000-001``: all that are missing
    (``joint``), or one at a time (``sequential``). A group that was begun is continued from its last checkpoint; where
    it has none, it is started again.

    Args:
        wanted: Ids of the members; None takes the configuration's.
        mode: ``auto``, ``joint`` or ``sequential``.
        waits: Wait for members that other processes train, until they are done or free.
    """

    def __init__(self, wanted: list[int] | None, mode: str, waits: bool = False) -> None:
        self.wanted, self.mode, self.waits = wanted, mode, waits
        self.root = self.folder = Path()
        self.store: MemberStore | None = None
        self.group: list[int] = []
        self.members_per_pass: int | None = None

    def choose(self, root: Path, members: Any) -> Path:
        """Claim the next group of members; the folder to train them in.

        Args:
            root: The ensemble's run folder.
            members: How many members, or which, the configuration asks for.
        """
        self.wanted = self.wanted or _ids(members)
        self.root, self.store = root, self.store or MemberStore(root / FOLDER)
        said = False
        while missing := self._missing(self.store):
            groups = self._candidates(self.store, missing)
            group = next((group for group in groups if self.store.locks.claim(group)), [])
            if set(group) & set(self._missing(self.store)):  # now that nobody else can end them
                self._begin(group)
                return self.folder
            self.store.locks.release()
            if not group and not self.waits:
                break
            if not group:
                said = said or self._say_who_trains(missing[0])
                time.sleep(_LOOK_AGAIN)
        raise _NothingLeft

    def _begin(self, group: list[int]) -> None:
        """Go on in the folder of members that were begun; start anew where it has no checkpoint."""
        assert self.store is not None
        self.group, self.folder = group, _work_folder(self.store, group)
        if not (self.folder / "checkpoints" / "last.ckpt").exists():
            shutil.rmtree(self.folder, ignore_errors=True)

    def _say_who_trains(self, member: int) -> bool:
        assert self.store is not None
        holder = self.store.locks.holder(member)
        if holder is not None:
            print(f"waiting for {holder}, which trains member {member}", flush=True)
        return holder is not None

    def _missing(self, store: MemberStore) -> list[int]:
        """Members that are wanted and have not ended."""
        assert self.wanted is not None
        ended = self._ended(store)
        return [member for member in self.wanted if member not in ended]

    def _ended(self, store: MemberStore) -> set[int]:
        return {*store.members(DONE), *store.members(FAILED)}

    def _candidates(self, store: MemberStore, missing: Sequence[int]) -> list[list[int]]:
        """Groups to try, those that were begun first."""
        free = [member for member in missing if store.locks.holder(member) is None]
        begun = [_ids_of(folder) for folder in sorted((store.folder / WORK).glob("*/checkpoints/last.ckpt"))]
        # of a group that was killed while it was written some are done: the others are not trained anew beside it
        begun = [group for group in begun if {*group} & {*free} and {*group} <= {*free} | self._ended(store)]
        if begun or not free:
            return begun
        return [[member] for member in free] if self.mode == "sequential" else [free]

    def ended(self) -> None:
        """Remove the run folder of a group that is done; its members are in the store."""
        assert self.store is not None
        self.store.locks.release()
        if self.group and set(self.group) <= self._ended(self.store):
            shutil.rmtree(self.folder)

    def split(self) -> bool:
        """Halve the members of a pass after memory ran out; False where there is one already."""
        size = self.members_per_pass or len(self.group)
        self.members_per_pass = (size + 1) // 2
        return size > 1


def _work_folder(store: MemberStore, group: Sequence[int]) -> Path:
    return store.folder / WORK / "-".join(f"{member:03d}" for member in group)


def _command_line(work: Work) -> type[CommandLine]:
    class GroupLine(CommandLine):
        """``fit`` of one group of members."""

        def before_instantiate_classes(self) -> None:
            """Choose the group's members and its folder, and go on from its last checkpoint where there is one."""
            config = self.config[self.subcommand]
            options = config.model.get("init_args", {})
            if "members" not in options:
                raise UsageError(f"{config.model.class_path} has no members; give -c method/ensemble")
            folder = work.choose(run_folder(config.trainer), options.members)
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
    own, rest = parsers.ensemble().parse_known_args(list(args))
    require_choice("mode", own.mode, MODES)
    if own.member is not None:
        if own.members is not None:
            raise UsageError("--member and --members are both given; give the id of one, or how many or which")
        require("member", own.member, own.member >= 0, "an id of 0 or above")
    wanted = [own.member] if own.member is not None else None if own.members is None else _parse(own.members)
    work = Work(wanted, own.mode, waits=own.member is not None)
    while _train_group(work, rest):
        pass
    return _report(work)


def _train_group(work: Work, args: list[str]) -> bool:
    """Train one group of members; whether there was one."""
    try:
        run(["fit", *args], _command_line(work))
    except _NothingLeft:
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
    return ids if "," in text else _ids(ids[0])


def _ids(members: Any) -> list[int]:
    return list(range(members)) if isinstance(members, int) else list(members)


def _ids_of(checkpoint: Path) -> list[int]:
    return [int(part) for part in checkpoint.parent.parent.name.split("-")]
