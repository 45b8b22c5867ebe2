"""Leases: which process works on which member, so that several processes or machines share the work."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

from bayeslora.errors import RunError
from bayeslora.files import write_json

_OWNER = uuid4().hex  # of this process and, with its number added, of those forked from it
_RENEWALS = 4  # in the time after which a lease runs out


class Leases:
    """Leases of members in a folder that the workers share, one file each.

    A lease holds until it runs out, or until its process on this machine is gone. All changes are made under a lock on
    the folder, so that no two workers ever own a member.

    Args:
        folder: Their folder.
        seconds: Until a lease that is not renewed runs out.
    """

    def __init__(self, folder: Path, seconds: float = 600.0) -> None:
        self.folder, self.seconds = folder, seconds
        self.held: set[int] = set()
        self._renewed = 0.0

    def claim(self, members: Sequence[int]) -> bool:
        """Take the leases of all the members, or of none where another worker has one of them."""
        with self.locked():
            if any(self.holder(member) for member in members):
                return False
            self._write(members)
        self.held |= set(members)
        return True

    def holder(self, member: int) -> str | None:
        """Who else works on a member, as ``host:process``; None where it is free, or ours."""
        lease = self._read(member)
        if lease is None or lease["owner"] == _owner() or lease["expires"] < time.time() or _is_dead(lease):
            return None
        return f"{lease['host']}:{lease['process']}"

    def renew(self) -> None:
        """Put off the end of the leases that are held, now and then; cheap to call at every step.

        Raises:
            RunError: a lease ran out and another worker took it.
        """
        if not self.held or time.monotonic() - self._renewed < self.seconds / _RENEWALS:
            return
        with self.locked():
            self._check()
            self._write(sorted(self.held))

    def check(self) -> None:
        """Make sure that the leases are still ours.

        Raises:
            RunError: one ran out and another worker took it.
        """
        with self.locked():
            self._check()

    def release(self) -> None:
        """Give back what is held."""
        with self.locked():
            for member in self.held:
                lease = self._read(member)
                if lease is not None and lease["owner"] == _owner():
                    self._file(member).unlink()
        self.held.clear()

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Within the block, no other worker claims, renews or gives back a lease."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # let go when the file is closed, or its process is killed
            yield

    def _check(self) -> None:
        for member in sorted(self.held):
            lease = self._read(member)
            if lease is None or lease["owner"] != _owner():
                by = "another worker" if lease is None else f"{lease['host']}:{lease['process']}"
                raise RunError(f"the lease on member {member} ran out and {by} took it; this worker stops")

    def _write(self, members: Sequence[int]) -> None:
        self._renewed = time.monotonic()
        owner = {"owner": _owner(), "host": socket.gethostname(), "process": os.getpid()}
        for member in members:
            write_json(self._file(member), {**owner, "expires": time.time() + self.seconds})

    def _read(self, member: int) -> dict[str, Any] | None:
        file = self._file(member)
        return json.loads(file.read_text()) if file.exists() else None

    def _file(self, member: int) -> Path:
        return self.folder / f"{member:03d}.json"


def _owner() -> str:
    return f"{_OWNER}-{os.getpid()}"


def _is_dead(lease: dict[str, Any]) -> bool:
    """Whether the lease's process ran on this machine and runs no more."""
    if lease["host"] != socket.gethostname():
        return False
    try:
        os.kill(lease["process"], 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False  # it runs, as another user
    return False
