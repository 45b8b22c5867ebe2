"""Locks: which process works on which member of an ensemble, so that several processes or machines share the work."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from filelock import BaseFileLock, FileLock, Timeout

from bayeslora.errors import UsageError


class MemberLocks:
    """Locks of members in a folder that the workers share, one file each.

    The operating system holds them: they end with the process that took them, however it ends, and never before; no
    clock has a say. The objects of one process share its locks, so that a command may hold what its callback claims.
    Whose a lock is stands in a text file beside it, for messages alone.

    Args:
        folder: Their folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._held: dict[int, ExitStack] = {}

    def claim(self, members: Sequence[int]) -> bool:
        """Take the locks of all the members, or of none where another process has one of them.

        Args:
            members: Ids of the members; what is held already stays so.

        Raises:
            UsageError: the file system has no locks.
        """
        with self.exclusive(), ExitStack() as undo:
            taken = {}
            for member in members:
                if member not in self._held:
                    taken[member] = undo.enter_context(ExitStack())
                    try:
                        taken[member].enter_context(self._lock(member).acquire(timeout=0))
                    except Timeout:
                        return False
            undo.pop_all()
            self._held |= taken
            for member in taken:
                self._note(member).write_text(f"{socket.gethostname()}:{os.getpid()}")
        return True

    def holder(self, member: int) -> str | None:
        """Which other process works on a member, as ``host:process``; None where it is free, or ours."""
        with self.exclusive():
            try:
                with self._lock(member).acquire(timeout=0):
                    return None
            except Timeout:
                note = self._note(member)
                return note.read_text(errors="replace") if note.exists() else "another process"

    def release(self) -> None:
        """Give back what is held."""
        while self._held:
            self._held.popitem()[1].close()

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Within the block, no other process claims a member, or changes what all members have in common.

        Raises:
            UsageError: the folder's file system has no locks.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        lock = _file_lock(self.folder / "lock")
        try:
            lock.acquire()
        except OSError as error:
            raise UsageError(
                f"{self.folder} cannot be locked ({error.strerror or error}); members are shared out by locks: put the "
                "run folder on a file system that has them, where you may write"
            ) from error
        try:
            yield
        finally:
            lock.release()

    def _lock(self, member: int) -> BaseFileLock:
        return _file_lock(self.folder / f"{member:03d}.lock")

    def _note(self, member: int) -> Path:
        return self.folder / f"{member:03d}.txt"


def _file_lock(path: Path) -> BaseFileLock:
    """The one lock of this process on a file; a lock file without the system's lock behind it is never taken."""
    return FileLock(path, is_singleton=True, thread_local=False, fallback_to_soft=False)
