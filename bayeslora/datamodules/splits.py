"""Which questions are trained, validated and tested on."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

from bayeslora.datamodules.protocols import Protocol
from bayeslora.datamodules.question import Question
from bayeslora.datamodules.sampler import permutation
from bayeslora.datamodules.source import Benchmark
from bayeslora.errors import UsageError

Divided = tuple[list[Question], list[Question]]


def load_split(benchmark: Benchmark, split: str, protocol: Protocol, data_dir: str | None) -> list[Question]:
    """The questions of a split that the protocol uses."""
    questions = benchmark.load(split, data_dir)
    return [question for question in questions if protocol.keeps(benchmark.task, question)]


def load_training(
    benchmark: Benchmark, protocol: Protocol, data_dir: str | None, labels: int | None, seed: int
) -> Divided:
    """The training and the validation questions.

    Args:
        benchmark: Where they come from.
        protocol: Which splits serve what.
        data_dir: Folder of local files, or None for the hub.
        labels: Label budget of both together, drawn from the training splits, a fifth of it validation; None takes the
            splits whole.
        seed: Of what is drawn.

    Raises:
        UsageError: a budget that is too small or too large.
    """
    splits = protocol.splits(benchmark)
    pool = [q for split in splits.train for q in load_split(benchmark, split, protocol, data_dir)]
    if labels is not None:
        if not 2 <= labels <= len(pool):
            raise UsageError(f"labels is {labels}; allowed with {benchmark.name}: 2 to {len(pool)}")
        return divide([pool[i] for i in permutation(len(pool), seed, "labels")[:labels]], seed)
    if splits.validation is None:
        return (pool[: -fifth(pool)], pool[-fifth(pool) :]) if splits.in_order else divide(pool, seed)
    return pool, load_split(benchmark, splits.validation, protocol, data_dir)


def fifth(pool: Sequence[Question]) -> int:
    """A fifth of the number of questions, rounded up."""
    return -(-len(pool) // 5)


def divide(pool: Sequence[Question], seed: int) -> Divided:
    """A seeded four fifths to train on and one fifth (rounded up) to validate on, each in its original order."""
    chosen = set(permutation(len(pool), seed, "validation")[: fifth(pool)])
    rest = [question for i, question in enumerate(pool) if i not in chosen]
    return rest, [question for i, question in enumerate(pool) if i in chosen]


def shared_questions(first: Iterable[Question], second: Iterable[Question]) -> list[tuple[str, str]]:
    """Ids of questions of ``first`` that stand word for word in ``second`` too, with the ids they have there."""
    ids = {question.content: question.id for question in first}
    return [(ids[question.content], question.id) for question in second if question.content in ids]


def fingerprint(sets: Iterable[Sequence[Question]]) -> str:
    """A sha256 over every question's id, text, options and label, in order."""
    digest = hashlib.sha256()
    for questions in sets:
        digest.update(repr([(q.id, q.content, q.label) for q in questions]).encode())
    return digest.hexdigest()
