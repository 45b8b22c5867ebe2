"""Which questions make up which batch: a pure function of seed, epoch and the questions' lengths."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeVar

import torch

from bayeslora.errors import UsageError
from bayeslora.streams import generator

Order = Literal["bucketed", "shuffled", "sequential"]
POOL = 50  # batches that are sorted by length together
T = TypeVar("T")


def permutation(n: int, *stream: int | str) -> list[int]:
    """A random order of ``n`` things; ``stream`` names the draw, and other names give unrelated draws.

    Args:
        n: How many things.
        *stream: Names the draw.
    """
    return torch.randperm(n, generator=generator(*stream)).tolist()


def order(seed: int, epoch: int, n: int, member: int = 0) -> list[int]:
    """The order of ``n`` questions in an epoch; every (seed, member, epoch) has an unrelated one.

    Args:
        seed: The run's seed.
        epoch: Number of the epoch, from 0.
        n: How many things.
        member: Id of the member of an ensemble that is trained.
    """
    return permutation(n, seed, "order", member, epoch)


@dataclass
class TrainBatches:
    """The training batches of an epoch on one of ``world`` ranks, every rank with the same number of them.

    ``bucketed``: the epoch's permutation is cut into pools of 50 batches, each pool is sorted by length and cut into
    batches, and the batches are shuffled; little is left to pad, and any two questions can still meet. ``shuffled``
    leaves the sorting out; ``sequential`` takes the questions as they stand. Rank r of W takes every W-th question of a
    batch of ``batch_size * W``, so that W ranks see together what one rank with the larger batch sees alone. A last
    batch too small for all ranks borrows questions from the start of the epoch.

    Attributes:
        lengths: Length in tokens of each question.
        batch_size: Questions in a batch, per rank.
        seed: Of the order.
        how: ``bucketed``, ``shuffled`` or ``sequential``.
        drop_last: Whether a last batch that is not full is left out.
        rank: Of this process.
        world: Number of processes.
        member: Member of an ensemble whose order this is.
        epoch: Whose batches these are.
        shift: Between the trainer's count of epochs and this one.

    Raises:
        UsageError: no batch is left where one that is not full is left out.
    """

    lengths: Sequence[int]
    batch_size: int
    seed: int
    how: Order = "bucketed"
    drop_last: bool = False
    rank: int = 0
    world: int = 1
    member: int = 0
    epoch: int = 0
    shift: int = 0
    _sizes: tuple[int, list[int]] | None = field(default=None, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Refuse what the trainer would skip in silence: training without a batch."""
        if self.drop_last and len(self) == 0:
            size = f"{self.batch_size} questions" + (f" on each of {self.world} processes" if self.world > 1 else "")
            raise UsageError(
                f"{len(self.lengths)} training questions fill no batch of {size}, and the protocol drops one that is "
                "not full; give a smaller batch_size, more questions, or another protocol"
            )

    @property
    def sampler(self) -> TrainBatches:
        """This object, whose epoch the trainer sets under this name."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch, as the trainer counts."""
        self.epoch = epoch + self.shift

    def resume(self, epoch: int) -> None:
        """Take the trainer's present epoch for ``epoch``, and go on counting from there.

        The trainer takes an epoch that ``max_steps`` cut short for complete; a prolonged run still has the rest of it.
        """
        self.shift += epoch - self.epoch
        self.epoch = epoch

    def __len__(self) -> int:
        """Number of batches in any epoch."""
        size = self.batch_size * self.world
        return len(self.lengths) // size if self.drop_last else -(-len(self.lengths) // size)

    def sizes(self) -> list[int]:
        """Questions in every batch of this epoch, of all ranks together and without those that are borrowed."""
        if self._sizes is None or self._sizes[0] != self.epoch:  # every micro-batch asks, which is not to cost an epoch
            n, size = len(self.lengths), self.batch_size * self.world
            found = [min(size, n - size * place) for place in range(len(self))]
            ordered = [found[i] for i in self._places(len(found))] if self.how == "bucketed" else found
            self._sizes = self.epoch, ordered
        return self._sizes[1]

    def __iter__(self) -> Iterator[list[int]]:
        """The batches, as row numbers of their questions."""
        n, size = len(self.lengths), self.batch_size * self.world
        rows = list(range(n)) if self.how == "sequential" else order(self.seed, self.epoch, n, self.member)
        batches = self._bucketed(rows, size) if self.how == "bucketed" else chunks(rows, size)
        for batch in batches:
            if len(batch) < size and self.drop_last:
                continue
            if len(batch) < self.world:
                batch = batch + (rows * self.world)[: self.world - len(batch)]
            yield batch[self.rank :: self.world]

    def _bucketed(self, rows: list[int], size: int) -> list[list[int]]:
        pools = [sorted(pool, key=self.lengths.__getitem__) for pool in chunks(rows, POOL * size)]
        batches = [batch for pool in pools for batch in chunks(pool, size)]
        return [batches[i] for i in self._places(len(batches))]

    def _places(self, count: int) -> list[int]:
        return permutation(count, self.seed, "batches", self.member, self.epoch)


@dataclass
class EvalBatches:
    """Every question exactly once, on any number of ranks, the longest first (so memory runs out at once or never).

    Attributes:
        lengths: Length in tokens of each question.
        batch_size: Questions in a batch.
        how: ``bucketed`` sorts by length, anything else leaves the questions as they stand.
        rank: Of this process.
        world: Number of processes.
        epoch: Of the batches; always the same.
    """

    lengths: Sequence[int]
    batch_size: int
    how: Order = "bucketed"
    rank: int = 0
    world: int = 1
    epoch: int = 0

    @property
    def sampler(self) -> EvalBatches:
        """This object, whose epoch the trainer sets under this name."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Nothing changes with the epoch."""

    def __len__(self) -> int:
        """Number of batches on this rank."""
        return -(-len(range(self.rank, len(self.lengths), self.world)) // self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        """The batches, as row numbers of their questions."""
        rows = list(range(len(self.lengths)))
        if self.how == "bucketed":
            rows.sort(key=lambda row: (-self.lengths[row], row))
        yield from chunks(rows[self.rank :: self.world], self.batch_size)


def chunks(values: list[T], size: int) -> list[list[T]]:
    """Consecutive pieces of ``size`` values, the last one shorter where it does not divide.

    Args:
        values: What is cut.
        size: Length of a piece.
    """
    return [values[start : start + size] for start in range(0, len(values), size)]
