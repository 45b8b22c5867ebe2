"""What was predicted, batch by batch and rank by rank, put together: every question once, in its dataset's order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import lightning as L
import torch
from torch import Tensor

from bayeslora.curvature.ranks import Ranks
from bayeslora.datamodules.option_order import merge_orders
from bayeslora.errors import RunError, UsageError
from bayeslora.metrics.answers import Answers
from bayeslora.types import AnswerBatch, Predictive


@dataclass(frozen=True)
class _Batch:
    """What one rank predicted for one batch."""

    rank: int
    loader: int
    dataset: str
    rows: Tensor
    answers: Answers


class Collected:
    """The predictions of an evaluation.

    Args:
        label_fn: For batches that are not of this package: batch to labels ``[B]``; None where they are not known.
        id_fn: Likewise: batch to row numbers ``[B]``; None counts the questions, which only one process can.
    """

    def __init__(
        self, label_fn: Callable[[Any], Tensor] | None = None, id_fn: Callable[[Any], Tensor] | None = None
    ) -> None:
        self.label_fn, self.id_fn = label_fn, id_fn
        self._batches: list[_Batch] = []

    def add(self, trainer: L.Trainer, predictive: Predictive, batch: Any, dataset: str, loader: int = 0) -> None:
        """Keep the predictions of a batch.

        Args:
            trainer: The trainer that runs the evaluation.
            predictive: What was predicted.
            batch: The batch; one of this package says which dataset it is of.
            dataset: The dataset of any other.
            loader: Number of the loader it came from.

        Raises:
            RunError: If a probability is not a number.
            UsageError: If there are several processes and nothing says which rows a batch holds, or a Gaussian would
                have to be averaged over orders of the options.
        """
        label: Tensor | None
        if isinstance(batch, AnswerBatch):
            batch, predictive = merge_orders(batch, predictive)
            dataset, rows, label = batch.dataset, batch.example_id.cpu(), batch.label
        else:
            rows = self._rows(trainer, batch, dataset, predictive.log_probs.shape[1])
            label = None if self.label_fn is None else self.label_fn(batch)
        _stop_at_nan(predictive, dataset, rows, trainer)
        answers = Answers.from_predictive(predictive, label)
        self._batches.append(_Batch(trainer.global_rank, loader, dataset, rows, answers))

    def answers(self, trainer: L.Trainer) -> dict[str, Answers]:
        """What all ranks predicted, by dataset in the order of the loaders.

        Raises:
            RunError: If a question was met twice, or not at all.
        """
        batches = [batch for theirs in Ranks().gather(self._batches) for batch in theirs]
        return {
            name: _assemble([batch for batch in batches if batch.dataset == name], name, trainer)
            for name in dict.fromkeys(batch.dataset for batch in sorted(batches, key=lambda batch: batch.loader))
        }

    def _rows(self, trainer: L.Trainer, batch: Any, dataset: str, size: int) -> Tensor:
        if self.id_fn is not None:
            return self.id_fn(batch).long().cpu()
        if trainer.world_size > 1:
            raise UsageError(
                f"{trainer.world_size} processes share the questions; give Predictions an id_fn: batch -> [B]"
            )
        seen = sum(len(earlier.rows) for earlier in self._batches if earlier.dataset == dataset)
        return torch.arange(seen, seen + size, device="cpu")


def _stop_at_nan(predictive: Predictive, dataset: str, rows: Tensor, trainer: L.Trainer) -> None:
    bad = predictive.log_mean.isnan().any(-1).cpu()
    if bad.any():
        example = _name(_questions(trainer, dataset), int(rows[bad][0]))
        raise RunError(f"the probabilities of {int(bad.sum())} questions of {dataset} are NaN, the first is {example}")


def _assemble(batches: Sequence[_Batch], dataset: str, trainer: L.Trainer) -> Answers:
    """All answers to one dataset in the order of its rows."""
    rows = torch.cat([batch.rows for batch in batches])
    rank = torch.cat([torch.full_like(batch.rows, batch.rank) for batch in batches])
    questions = _questions(trainer, dataset)
    pairs, met = torch.stack([rows, rank]).unique(dim=1, return_counts=True)
    if (met > 1).any():
        twice = pairs[0, met > 1]
        raise RunError(
            f"{len(twice)} questions of {dataset} were met twice, the first is {_name(questions, int(twice[0]))}"
        )
    # a distributed sampler repeats questions on other ranks to give every rank equally many: the first of each stays
    order = rows.argsort(stable=True)
    first = torch.ones_like(order, dtype=torch.bool)
    first[1:] = rows[order][1:] != rows[order][:-1]
    order = order[first]
    rows = rows[order]
    if questions is not None and _whole(trainer):
        missing = sorted(set(range(len(questions))) - set(rows.tolist()))
        if missing:
            raise RunError(
                f"{len(missing)} questions of {dataset} were never met, the first is {_name(questions, missing[0])}"
            )
    answers = Answers.concatenate([batch.answers for batch in batches])[order]
    names = [_name(questions, row) for row in rows.tolist()]
    known = _true_probs(questions, rows, answers.probs.shape[1])
    return replace(answers, example_id=names, true_probs=known, key=_keys(questions, rows))


def _questions(trainer: L.Trainer, dataset: str) -> Sequence[Any] | None:
    """The source's questions of a dataset, where the datamodule can say."""
    lookup = getattr(getattr(trainer, "datamodule", None), "questions", None)
    return None if lookup is None else lookup(dataset)


def _name(questions: Sequence[Any] | None, row: int) -> str:
    return str(row if questions is None else questions[row].id)


def _keys(questions: Sequence[Any] | None, rows: Tensor) -> Tensor | None:
    """The keys of the questions' contents, where the datamodule's questions have them."""
    found = [None if questions is None else getattr(questions[row], "key", None) for row in rows.tolist()]
    return None if any(key is None for key in found) else torch.tensor(found, dtype=torch.int64, device="cpu")


def _true_probs(questions: Sequence[Any] | None, rows: Tensor, width: int) -> Tensor | None:
    known = [None if questions is None else getattr(questions[row], "true_probs", None) for row in rows.tolist()]
    if any(probs is None for probs in known):
        return None
    vectors = [torch.as_tensor(probs, dtype=torch.float64, device="cpu") for probs in known]
    return torch.stack([torch.nn.functional.pad(vector, (0, width - len(vector))) for vector in vectors])


def _whole(trainer: L.Trainer) -> bool:
    """Whether every batch was wanted."""
    limit = trainer.limit_predict_batches if trainer.predicting else trainer.limit_test_batches
    return limit == 1.0 and not isinstance(limit, int)
