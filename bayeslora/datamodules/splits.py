"""Which questions are trained, validated and tested on."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from bayeslora.datamodules.protocols import Protocol
from bayeslora.datamodules.question import Question
from bayeslora.datamodules.sampler import permutation
from bayeslora.datamodules.source import Benchmark
from bayeslora.errors import UsageError, require

Divided = tuple[list[Question], list[Question]]
CALIBRATION = "calibration"


class Parts(NamedTuple):
    """The questions with labels that are not tested on, in three parts that share none."""

    train: list[Question]
    validation: list[Question]
    calibration: list[Question]


def load_split(benchmark: Benchmark, split: str, protocol: Protocol, data_dir: str | None) -> list[Question]:
    """The questions of a split that the protocol uses.

    Args:
        benchmark: Where the rows are and how one becomes a question.
        split: ``train``, ``validation`` or ``test``, as the source names it.
        protocol: How questions become prompts.
        data_dir: Folder of local JSONL files; None takes the hub.
    """
    questions = benchmark.load(split, data_dir)
    return [question for question in questions if protocol.keeps(benchmark.task, question)]


def load_parts(
    benchmark: Benchmark,
    protocol: Protocol,
    data_dir: str | None,
    labels: int | None,
    seed: int,
    calibration: float | str | None = None,
) -> Parts:
    """The training, the validation and the calibration questions.

    Args:
        benchmark: Where they come from.
        protocol: Which splits serve what.
        data_dir: Folder of local files, or None for the hub.
        labels: Label budget, drawn from the training splits, a fifth of it validation; None takes the splits whole.
            Calibration questions that are drawn are part of it: what is left trains and validates as a budget of that
            size would.
        seed: Of what is drawn.
        calibration: Share of the budget below 1, number of questions from 1 on, or name of a split. None takes the
            split ``calibration`` where there is one, else no question.

    Returns:
        The three parts; all are empty where the benchmark has no training split (a test set of one's own).

    Raises:
        UsageError: a budget that is too small or too large, a calibration part that is, or a split that is not there or
            serves another purpose.
    """
    splits = protocol.splits(benchmark)
    if not set(splits.train) & set(benchmark.labelled):
        return Parts([], [], [])
    pool = [q for split in splits.train for q in load_split(benchmark, split, protocol, data_dir)]
    if labels is not None:
        if not 2 <= labels <= len(pool):
            raise UsageError(f"labels is {labels}; allowed with {benchmark.name}: 2 to {len(pool)}")
        pool = [pool[i] for i in permutation(len(pool), seed, "labels")[:labels]]
    if calibration is None and CALIBRATION in benchmark.labelled:
        calibration = CALIBRATION
    if calibration is None or isinstance(calibration, str):
        apart = [] if calibration is None else _split_apart(benchmark, protocol, data_dir, calibration)
    else:
        count = _number(calibration, len(pool))
        order = range(len(pool)) if labels is not None else permutation(len(pool), seed, CALIBRATION)
        chosen = set(order[len(pool) - count :])
        apart = [question for i, question in enumerate(pool) if i in chosen]
        pool = [question for i, question in enumerate(pool) if i not in chosen]
    if labels is not None:
        return Parts(*divide(pool, seed), apart)
    if splits.validation is not None:
        return Parts(pool, load_split(benchmark, splits.validation, protocol, data_dir), apart)
    last = fifth(pool)
    return Parts(*((pool[:-last], pool[-last:]) if splits.in_order else divide(pool, seed)), apart)


def _split_apart(benchmark: Benchmark, protocol: Protocol, data_dir: str | None, name: str) -> list[Question]:
    """A split as calibration part, which must serve no other purpose."""
    splits = protocol.splits(benchmark)
    free = [split for split in benchmark.labelled if split not in (*splits.train, splits.validation, splits.test)]
    allowed = [f"the split {split}" for split in free] + ["a share below 1", "a number of questions"]
    require("calibration", name, name in free, ", ".join(allowed))
    return load_split(benchmark, name, protocol, data_dir)


def _number(calibration: float, pool: int) -> int:
    """How many of a pool's questions are set aside, at least two being left."""
    count = math.ceil(calibration * pool - 1e-9) if calibration < 1 else calibration
    holds = 1 <= count <= pool - 2 and count == int(count)
    require("calibration", calibration, holds, f"a share below 1, or 1 to {pool - 2} of these {pool} questions")
    return int(count)


def fifth(pool: Sequence[Question]) -> int:
    """A fifth of the number of questions, rounded up."""
    return -(-len(pool) // 5)


def divide(pool: Sequence[Question], seed: int) -> Divided:
    """A seeded four fifths to train on and one fifth (rounded up) to validate on, each in its original order.

    Args:
        pool: The labelled questions.
        seed: Names the stream of random numbers; the same seed gives the same result.
    """
    chosen = set(permutation(len(pool), seed, "validation")[: fifth(pool)])
    rest = [question for i, question in enumerate(pool) if i not in chosen]
    return rest, [question for i, question in enumerate(pool) if i in chosen]


def shared_questions(first: Iterable[Question], second: Iterable[Question]) -> list[tuple[str, str]]:
    """Ids of questions of ``first`` that stand word for word in ``second`` too, with the ids they have there.

    Args:
        first: Questions.
        second: Other questions, in which those of ``first`` are looked for.
    """
    ids = {question.content: question.id for question in first}
    return [(ids[question.content], question.id) for question in second if question.content in ids]


def fingerprint(sets: Iterable[Sequence[Question]]) -> str:
    """A sha256 over every question's id, text, options and label, in order."""
    digest = hashlib.sha256()
    for questions in sets:
        digest.update(repr([(q.id, q.content, q.label) for q in questions]).encode())
    return digest.hexdigest()


def full_batches(questions: list[Question], size: int, protocol: Protocol) -> list[Question]:
    """As many questions as fill batches.

    Args:
        questions: The questions, in their order.
        size: Questions in a batch for evaluation.
        protocol: The protocol that drops a batch which is not full.

    Raises:
        UsageError: they do not fill one batch.
    """
    if len(questions) < size:
        raise UsageError(
            f"eval_batch_size is {size}; allowed: {len(questions)} or less, since protocol {protocol.name!r} drops a "
            "batch that is not full"
        )
    return questions[: len(questions) // size * size]
