"""Processes that work on one thing together: they deal out the batches, add up their sums, see what others found."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

from torch import Tensor, distributed

from bayeslora.errors import RunError

T = TypeVar("T")


class Ranks:
    """The processes of a distributed run; one alone where none are connected.

    Batches are those of a run of one process, in its order, so that what is found batch by batch does not depend on the
    number of processes; sums over batches differ by the rounding of another order.

    Attributes:
        rank: Number of this process.
        world: How many there are.
    """

    def __init__(self) -> None:
        connected = distributed.is_available() and distributed.is_initialized()
        self.rank, self.world = (distributed.get_rank(), distributed.get_world_size()) if connected else (0, 1)

    def own(self, batches: Iterable[T]) -> Iterator[tuple[int, T]]:
        """This process's batches, with their numbers among all."""
        return ((index, batch) for index, batch in enumerate(batches) if index % self.world == self.rank)

    def gather(self, value: T) -> list[T]:
        """What every process has, in the order of their numbers; every process has to ask for it."""
        if self.world == 1:
            return [value]
        found: list[Any] = [None] * self.world
        distributed.all_gather_object(found, value)
        return found

    def agree(self, value: T) -> T:
        """What the first process has, in every process."""
        return self.gather(value if self.rank == 0 else None)[0]  # type: ignore[return-value]

    def add(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The sums over all processes of tensors that have the same names and shapes in each, bit for bit the same."""
        if self.world == 1:
            return dict(tensors)
        on_gpu = distributed.get_backend() == "nccl"
        found = {}
        for name, tensor in tensors.items():
            total = tensor.clone().cuda() if on_gpu else tensor.cpu().clone()
            distributed.all_reduce(total)
            distributed.broadcast(total, 0)
            found[name] = total.to(tensor.device)
        return found

    @contextmanager
    def together(self) -> Iterator[None]:
        """Leave the block when all processes have; where one of them fails in it, all do, instead of waiting for it.

        Raises:
            RunError: another process has failed.
        """
        failure: Exception | None = None
        try:
            yield
        except Exception as error:
            if self.world == 1:
                raise
            failure = error
        failures = self.gather(None if failure is None else f"{type(failure).__name__}: {failure}")
        if failure is not None:
            raise failure
        for rank, reason in enumerate(failures):
            if reason is not None:
                raise RunError(f"process {rank} of {self.world} has failed ({reason})")
