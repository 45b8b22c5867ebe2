"""One process at a time writes into a run folder."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from pathlib import Path

from filelock import FileLock, Timeout
from lightning.pytorch.utilities import rank_zero_only

from bayeslora.errors import UsageError
from bayeslora.files import clear_leftovers
from bayeslora.posteriors.members.store import FOLDER

FILE = ".lock"
_held: ContextVar[ExitStack | None] = ContextVar("held", default=None)


@contextmanager
def folder_locks() -> Iterator[None]:
    """Within the block :func:`lock_folder` may be used; its locks end with the block, or with the process."""
    with ExitStack() as locks:
        token = _held.set(locks)
        try:
            yield
        finally:
            _held.reset(token)


def lock_folder(root: Path) -> None:
    """Keep other processes from writing into a run folder until the command ends; clear what killed ones have left.

    The other ranks of a distributed run belong to the process that holds the lock, and take none.

    Args:
        root: The run folder; it is made where it does not exist.

    Raises:
        UsageError: another process works in it, or it cannot be written to.
    """
    locks = _held.get()
    if locks is None or rank_zero_only.rank > 0:  # type: ignore[attr-defined]
        return
    try:
        root.mkdir(parents=True, exist_ok=True)
        locks.enter_context(FileLock(root / FILE, timeout=0, fallback_to_soft=False))
        clear_leftovers(root, others=(FILE, FOLDER))  # run folders below have locks of their own, members leases
    except Timeout:
        raise UsageError(
            f"another process is working in {root}; wait until it ends, or give another --trainer.default_root_dir"
        ) from None
    except OSError as error:
        raise UsageError(
            f"the run folder {root} cannot be written to ({error.strerror or error}); give another "
            "--trainer.default_root_dir"
        ) from error
