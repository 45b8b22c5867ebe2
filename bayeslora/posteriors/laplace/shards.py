"""Rows of Jacobians in shards, one a batch: in memory, or on disk where a pass that was killed goes on."""

from __future__ import annotations

import shutil
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from bayeslora.errors import UsageError
from bayeslora.files import replacing

_COLUMNS = 16384  # of the rows that are held in float32 or float64 at a time


class Shards(ABC):
    """What a pass over the data has found, batch by batch: small tensors, and rows ``[rows, columns]``."""

    @abstractmethod
    def __contains__(self, index: int) -> bool:
        """Whether the batch of this number is there."""

    @abstractmethod
    def __len__(self) -> int:
        """Number of batches that are there; they are 0 .. len - 1 when a pass is complete."""

    @abstractmethod
    def write(self, index: int, tensors: Mapping[str, Tensor]) -> None:
        """Keep a batch's tensors.

        Args:
            index: Number of the batch.
            tensors: The tensors by name.
        """

    @abstractmethod
    def read(self, index: int, name: str, columns: slice | None = None) -> Tensor:
        """A tensor of a batch, or some of its columns.

        Args:
            index: Number of the batch.
            name: The tensor's name.
            columns: Which columns; None, where allowed, for all.
        """

    @abstractmethod
    def exchange(self, gather: Callable[[Any], list[Any]]) -> None:
        """See what other processes have written, once all have come here.

        Args:
            gather: Gives every process what each of them has.

        Raises:
            UsageError: they write where this one does not see it.
        """

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Within the block every shard is opened once, however many of its columns are read."""
        yield

    def stacked(self, name: str) -> list[Tensor]:
        """One tensor of every batch."""
        with self.reading():
            return [self.read(index, name) for index in range(len(self))]

    def columns(self, name: str, columns: slice) -> Tensor:
        """Some columns of a tensor, the rows of all batches one after another.

        Args:
            name: The tensor's name.
            columns: Which columns; None, where allowed, for all.
        """
        return torch.cat([self.read(index, name, columns) for index in range(len(self))])


def pieces(start: int, stop: int) -> Iterator[slice]:
    """The columns from ``start`` to ``stop``, as many at a time as are held in wide numbers together.

    Args:
        start: The first column.
        stop: The column after the last.
    """
    for low in range(start, stop, _COLUMNS):
        yield slice(low, min(low + _COLUMNS, stop))


class MemoryShards(Shards):
    """Shards that are gone with the process."""

    def __init__(self) -> None:
        self._batches: dict[int, dict[str, Tensor]] = {}

    def __contains__(self, index: int) -> bool:
        """See :class:`Shards`."""
        return index in self._batches

    def __len__(self) -> int:
        """See :class:`Shards`."""
        return len(self._batches)

    def write(self, index: int, tensors: Mapping[str, Tensor]) -> None:
        """See :class:`Shards`."""
        self._batches[index] = {name: tensor.cpu() for name, tensor in tensors.items()}

    def read(self, index: int, name: str, columns: slice | None = None) -> Tensor:
        """See :class:`Shards`."""
        tensor = self._batches[index][name]
        return tensor if columns is None else tensor[:, columns]

    def exchange(self, gather: Callable[[Any], list[Any]]) -> None:
        """See :class:`Shards`; afterwards every process has all of them."""
        for theirs in gather(self._batches):
            self._batches |= theirs


class DiskShards(Shards):
    """Shards as safetensors files, each whole or absent, with a checksum and the key of the run they belong to.

    Args:
        folder: Where they are.
        key: Tells what they were computed from: weights, data, precision.

    Raises:
        UsageError: when a shard is read that is damaged or of another run.
    """

    def __init__(self, folder: Path, key: str) -> None:
        self.folder, self.key = folder, key
        self._checked: set[int] = set()
        self._open: dict[int, Any] = {}
        self._kept_open = ExitStack()

    def __contains__(self, index: int) -> bool:
        """See :class:`Shards`."""
        return self._file(index).exists()

    def __len__(self) -> int:
        """See :class:`Shards`."""
        return len(list(self.folder.glob("*.safetensors"))) if self.folder.is_dir() else 0

    def write(self, index: int, tensors: Mapping[str, Tensor]) -> None:
        """See :class:`Shards`."""
        save_checked(self._file(index), tensors, self.key)

    def read(self, index: int, name: str, columns: slice | None = None) -> Tensor:
        """See :class:`Shards`."""
        with self.reading():
            if index not in self._open:
                self._open[index] = self._kept_open.enter_context(_opened(self._file(index)))
            shard = self._open[index]
            if index not in self._checked:
                _contents(shard, self._file(index), self.key)
                self._checked.add(index)
            return shard.get_tensor(name) if columns is None else shard.get_slice(name)[:, columns]

    def exchange(self, gather: Callable[[Any], list[Any]]) -> None:
        """See :class:`Shards`; they stay where they are."""
        names = {
            name for theirs in gather([file.name for file in self.folder.glob("*.safetensors")]) for name in theirs
        }
        hidden = sorted(name for name in names if not (self.folder / name).exists())
        if any(gather(bool(hidden))):
            what = f"{self.folder / hidden[0]}, which another process has written," if hidden else "a file of another"
            raise UsageError(
                f"{what} is not seen by this process; processes that fit together need a run folder on a file system "
                "that all of them share: give another --trainer.default_root_dir, or fit on one device"
            )

    @contextmanager
    def reading(self) -> Iterator[None]:
        """See :class:`Shards`; files are mapped into memory, which takes no file descriptors."""
        self._depth += 1
        try:
            yield
        finally:
            self._depth -= 1
            if self._depth == 0:
                self._open.clear()
                self._kept_open.close()

    _depth = 0  # blocks of reading() inside one another

    def check(self) -> None:
        """Read every shard once.

        Raises:
            UsageError: one is damaged or of another run.
        """
        for file in sorted(self.folder.glob("*.safetensors")):
            load_checked(file, self.key)
            self._checked.add(int(file.stem))

    def _file(self, index: int) -> Path:
        return self.folder / f"{index:06d}.safetensors"


def save_checked(file: Path, tensors: Mapping[str, Tensor], key: str) -> None:
    """Write tensors with a checksum and the key of what they were computed from, whole or not at all.

    Args:
        file: The file.
        tensors: The tensors by name.
        key: Names what the content was computed from (weights, data, options).
    """
    own = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
    with replacing(file) as temporary:
        save_file(own, temporary, metadata={"key": key, "checksum": _checksum(own)})


def load_checked(file: Path, key: str) -> dict[str, Tensor]:
    """Read what :func:`save_checked` wrote.

    Args:
        file: The file.
        key: Names what the content was computed from (weights, data, options).

    Raises:
        UsageError: it is damaged or of another run.
    """
    with _opened(file) as opened:
        return _contents(opened, file, key)


@contextmanager
def _opened(file: Path) -> Iterator[Any]:
    try:
        opened = safe_open(file, framework="pt")
    except (SafetensorError, OSError) as error:
        raise _damaged(file, str(error)) from error
    with opened as contents:
        yield contents


def _contents(opened: Any, file: Path, key: str) -> dict[str, Tensor]:
    """All tensors of a file, once its key and checksum are found right."""
    metadata = opened.metadata() or {}
    try:
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise _damaged(file, str(error)) from error
    if metadata.get("key") != key:
        raise UsageError(f"{file} is of another run ({metadata.get('key')}, here {key}); remove its folder")
    if metadata.get("checksum") != _checksum(tensors):
        raise _damaged(file, "its checksum differs")
    return tensors


def _damaged(file: Path, reason: str) -> UsageError:
    return UsageError(f"{file} is damaged ({reason}); remove it, and it is computed again")


def check_disk(folder: Path, needed: int) -> None:
    """Refuse a pass whose shards would not fit.

    Args:
        folder: Where the shards will be.
        needed: Bytes that they take at most.

    Raises:
        UsageError: the disk is too small; names both sizes.
    """
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    free = shutil.disk_usage(existing).free
    if needed > free:
        raise UsageError(
            f"the Jacobian shards need up to {needed / 1e9:.3g} GB in {folder}, which has {free / 1e9:.3g} GB free; "
            "give another directory, fewer labels, a subset of the weights, or structure ekfac"
        )


def _checksum(tensors: Mapping[str, Tensor]) -> str:
    value = 0
    for name in sorted(tensors):
        value = zlib.crc32(tensors[name].contiguous().reshape(-1).view(torch.uint8).numpy().data, value)
    return f"{value:08x}"
