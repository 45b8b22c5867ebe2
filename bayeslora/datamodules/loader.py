"""Batches in the order of a sampler, from any position on."""

from __future__ import annotations

from collections.abc import Iterator
from copy import copy
from dataclasses import replace
from functools import partial

import torch
from torch.utils.data import DataLoader

from bayeslora.datamodules.batch import collate
from bayeslora.datamodules.rows import Rows
from bayeslora.datamodules.sampler import EvalBatches, TrainBatches
from bayeslora.types import AnswerBatch


class AnswerLoader:
    """An iterable of batches that knows its epoch and can start inside it.

    It is not a torch ``DataLoader`` (it makes one for each pass), so that the trainer leaves its sampler alone: the
    sampler deals batches to ranks itself, without repeating questions at test time.

    Args:
        rows: The questions.
        sampler: Which rows make up which batch.
        dataset: Name the batches carry.
        padding_side: ``left`` or ``right``.
        pad_id: Token to pad with.
        num_workers: Worker processes.
        resume: Epoch and number of batches to skip in the first pass, as a DataModule's checkpoint left them.
    """

    def __init__(
        self,
        rows: Rows,
        sampler: TrainBatches | EvalBatches,
        dataset: str,
        padding_side: str,
        pad_id: int,
        num_workers: int = 0,
        resume: tuple[int, int] | None = None,
    ) -> None:
        self.dataset, self.resume, self.num_workers = rows, resume, num_workers
        self._position: tuple[int, int] | None = None  # epoch and batches taken in the present pass
        self._left: tuple[int, int] | None = None  # the same where a checkpoint left it, without a DataModule
        # The trainer would replace a `sampler` under `overfit_batches`; it finds this one as `batch_sampler.sampler`.
        self.batch_sampler = sampler
        self.collate = partial(collate, dataset=dataset, padding_side=padding_side, pad_id=pad_id)

    def __len__(self) -> int:
        """Number of batches of a whole epoch, also where a pass starts inside it."""
        return len(self.batch_sampler)

    def __iter__(self) -> Iterator[AnswerBatch]:
        """One pass; the epoch is the one set when the first batch is taken."""
        start = 0
        if self.resume is not None:
            (epoch, start), self.resume = self.resume, None
            assert isinstance(self.batch_sampler, TrainBatches)  # only training is resumed
            self.batch_sampler.resume(epoch)
        elif self._left is not None:
            (epoch, taken), self._left = self._left, None
            start = taken if epoch == self.batch_sampler.epoch else 0
        epoch = self.batch_sampler.epoch
        batches = DataLoader(
            self.dataset,
            batch_sampler=[[(epoch, row) for row in batch] for batch in self.batch_sampler][start:],  # type: ignore[arg-type]
            collate_fn=self.collate,
            num_workers=self.num_workers,
            pin_memory=torch.cuda.is_available(),
            generator=torch.Generator(),  # its own, or every pass would draw from the global one
        )
        for taken, batch in enumerate(batches, start + 1):
            self._position = epoch, taken
            yield batch

    def undealt(self) -> AnswerLoader:
        """The batches of an evaluation as one process has them, where this loader has those of one of several."""
        assert isinstance(self.batch_sampler, EvalBatches)  # a step of training is dealt, not cut into batches
        whole = copy(self)
        whole.batch_sampler = replace(self.batch_sampler, rank=0, world=1)
        return whole

    def state_dict(self) -> dict[str, int]:
        """Where training is in the data, for a trainer that has this loader without its DataModule."""
        if self._position is None or not isinstance(self.batch_sampler, TrainBatches):
            return {}
        epoch, taken = self._position
        return {"epoch": epoch, "taken": taken}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Start there, unless the DataModule has said where to; checkpoints of before say nothing."""
        if state_dict and self.resume is None:
            self._left = state_dict["epoch"], state_dict["taken"]
