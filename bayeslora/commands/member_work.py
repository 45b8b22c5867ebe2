"""Which members of an ensemble to train next, and in which folder; what others train is left to them."""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bayeslora.callbacks.run_folder import holds_files
from bayeslora.errors import UsageError
from bayeslora.posteriors.members.store import DONE, FAILED, FOLDER, MemberStore, ids_of

_WORK = "begun"
_LOOK_AGAIN = 1.0  # seconds, while another process trains the one member that is wanted


class NothingLeft(Exception):
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

    def plan(self, root: Path, members: Any) -> MemberStore:
        """Take up where the ensemble is and which members are asked for; its store.

        Args:
            root: The ensemble's run folder.
            members: How many members, or which, the configuration asks for.

        Raises:
            UsageError: none are asked for, or the folder holds a run that is no ensemble's, whose posterior the members
                would take the place of.
        """
        self.wanted = self.wanted or ids_of(members)
        if not (root / FOLDER).exists() and any(holds_files(root / name) for name in ("checkpoints", "posterior")):
            raise UsageError(f"{root} holds a run that is no ensemble's; give another --trainer.default_root_dir")
        self.root, self.store = root, self.store or MemberStore(root / FOLDER)
        return self.store

    def choose(self, root: Path, members: Any) -> Path:
        """Claim the next group of members; the folder to train them in.

        Args:
            root: The ensemble's run folder.
            members: How many members, or which, the configuration asks for.
        """
        store, said = self.plan(root, members), False
        while missing := self._missing(store):
            groups = self._candidates(store, missing)
            group = next((group for group in groups if store.locks.claim(group)), [])
            if set(group) & set(self._missing(store)):  # now that nobody else can end them
                self._begin(group)
                return self.folder
            store.locks.release()
            if not group and not self.waits:
                break
            if not group:
                said = said or self._say_who_trains(missing[0])
                time.sleep(_LOOK_AGAIN)
        raise NothingLeft

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
        begun = [_ids_of_folder(folder) for folder in sorted((store.folder / _WORK).glob("*/checkpoints/last.ckpt"))]
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
    return store.folder / _WORK / "-".join(f"{member:03d}" for member in group)


def _ids_of_folder(checkpoint: Path) -> list[int]:
    return [int(part) for part in checkpoint.parent.parent.name.split("-")]
