"""Rows of Jacobians in shards, one a batch: in memory, or on disk where a pass that was killed goes on."""

from __future__ import annotations

import shutil
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from bayeslora.errors import UsageError
from bayeslora.files import replacing

_COLUMNS = 16384  # of one parameter's rows that are held in float32 at a time


class Shards(ABC):
    """What a pass over the data has found, batch by batch: small tensors, and rows ``[rows, numel]`` by parameter."""

    @abstractmethod
    def __contains__(self, index: int) -> bool:
        """Whether the batch of this number is there."""

    @abstractmethod
    def __len__(self) -> int:
        """Number of batches that are there; they are 0 .. len - 1 when a pass is complete."""

    @abstractmethod
    def write(self, index: int, tensors: Mapping[str, Tensor]) -> None:
        """Keep a batch's tensors."""

    @abstractmethod
    def read(self, index: int, name: str, columns: slice | None = None) -> Tensor:
        """A tensor of a batch, or some of its columns."""

    def stacked(self, name: str) -> list[Tensor]:
        """One tensor of every batch."""
        return [self.read(index, name) for index in range(len(self))]

    def columns(self, name: str, size: int) -> Iterator[tuple[slice, Tensor]]:
        """The rows of all batches ``[m, columns]``, a slice of one parameter's ``size`` columns after another."""
        for start in range(0, size, _COLUMNS):
            part = slice(start, min(start + _COLUMNS, size))
            yield part, torch.cat([self.read(index, name, part) for index in range(len(self))])


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
        self._check(index)
        with safe_open(self._file(index), framework="pt") as shard:
            return shard.get_tensor(name) if columns is None else shard.get_slice(name)[:, columns]

    def check(self) -> None:
        """Read every shard once.

        Raises:
            UsageError: one is damaged or of another run.
        """
        for file in sorted(self.folder.glob("*.safetensors")):
            self._check(int(file.stem))

    def _check(self, index: int) -> None:
        if index not in self._checked:
            load_checked(self._file(index), self.key)
            self._checked.add(index)

    def _file(self, index: int) -> Path:
        return self.folder / f"{index:06d}.safetensors"


def save_checked(file: Path, tensors: Mapping[str, Tensor], key: str) -> None:
    """Write tensors with a checksum and the key of what they were computed from, whole or not at all."""
    own = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
    with replacing(file) as temporary:
        save_file(own, temporary, metadata={"key": key, "checksum": _checksum(own)})


def load_checked(file: Path, key: str) -> dict[str, Tensor]:
    """Read what :func:`save_checked` wrote.

    Raises:
        UsageError: it is damaged or of another run.
    """
    try:
        with safe_open(file, framework="pt") as opened:
            metadata = opened.metadata() or {}
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise UsageError(f"{file} is damaged ({error}); remove it, and it is computed again") from error
    if metadata.get("key") != key:
        raise UsageError(f"{file} is of another run ({metadata.get('key')}, here {key}); remove its folder")
    if metadata.get("checksum") != _checksum(tensors):
        raise UsageError(f"{file} is damaged (its checksum differs); remove it, and it is computed again")
    return tensors


def check_disk(folder: Path, needed: int) -> None:
    """Refuse a pass whose shards would not fit.

    Raises:
        UsageError: the disk is too small; names both sizes.
    """
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    free = shutil.disk_usage(existing).free
    if needed > free:
        raise UsageError(
            f"the Jacobian shards need up to {needed / 1e9:.3g} GB in {folder}, which has {free / 1e9:.3g} GB free; "
            "give another directory, fewer labels or sites, or structure ekfac"
        )


def _checksum(tensors: Mapping[str, Tensor]) -> str:
    value = 0
    for name in sorted(tensors):
        value = zlib.crc32(tensors[name].contiguous().reshape(-1).view(torch.uint8).numpy().data, value)
    return f"{value:08x}"
