"""Batches as pure functions of seed, epoch and lengths."""

import random
from collections.abc import Iterable

import pytest

from bayeslora.datamodules.sampler import POOL, EvalBatches, TrainBatches, order
from bayeslora.errors import UsageError


def skewed_lengths(n: int, seed: int = 0) -> list[int]:
    rng = random.Random(seed)
    return [20 + int(rng.expovariate(1 / 30)) for _ in range(n)]


def flat(batches: Iterable[list[int]]) -> list[int]:
    return sorted(row for batch in batches for row in batch)


def padded_tokens(batches: list[list[int]], lengths: list[int]) -> int:
    return sum(len(batch) * max(lengths[row] for row in batch) for batch in batches)


def test_order_is_a_permutation_that_seed_epoch_and_member_name() -> None:
    names = [(seed, epoch, member) for seed in range(4) for epoch in range(4) for member in range(4)]
    drawn = {(seed, epoch, member): tuple(order(seed, epoch, 50, member)) for seed, epoch, member in names}
    assert all(sorted(rows) == list(range(50)) for rows in drawn.values())
    assert len(set(drawn.values())) == len(names)  # with seed + epoch + member, most of these would coincide
    assert drawn[1, 2, 3] == tuple(order(1, 2, 50, 3))


@pytest.mark.parametrize("how", ["bucketed", "shuffled", "sequential"])
@pytest.mark.parametrize("n", [1, 15, 16, 17, 1000])
def test_an_epoch_has_every_question_once(how: str, n: int) -> None:
    batches = TrainBatches(skewed_lengths(n), 16, seed=0, how=how)  # type: ignore[arg-type]
    rows = list(batches)
    assert len(rows) == len(batches)
    assert sorted(row for batch in rows for row in batch) == list(range(n))
    assert rows == list(TrainBatches(skewed_lengths(n), 16, seed=0, how=how))  # type: ignore[arg-type]


def test_epochs_differ() -> None:
    batches = TrainBatches(skewed_lengths(100), 8, seed=0)
    first = list(batches)
    batches.set_epoch(1)
    assert list(batches) != first
    batches.set_epoch(0)
    assert list(batches) == first


def test_bucketing_saves_padding_and_does_not_sort_the_epoch() -> None:
    lengths = skewed_lengths(3000)
    bucketed = list(TrainBatches(lengths, 16, seed=0))
    shuffled = list(TrainBatches(lengths, 16, seed=0, how="shuffled"))
    assert padded_tokens(bucketed, lengths) < 0.7 * padded_tokens(shuffled, lengths)
    assert padded_tokens(bucketed, lengths) < 1.1 * sum(lengths)
    widths = [max(lengths[row] for row in batch) for batch in bucketed]
    assert widths[: POOL // 2] != sorted(widths[: POOL // 2])


def test_members_share_questions_but_not_their_order() -> None:
    lengths = skewed_lengths(100)
    members = [list(TrainBatches(lengths, 8, seed=0, member=member)) for member in range(3)]
    assert members[0] != members[1] != members[2]
    assert all(flat(batches) == list(range(100)) for batches in members)


@pytest.mark.parametrize("n", [64, 65, 67, 70, 3])
@pytest.mark.parametrize("world", [2, 3, 4])
def test_ranks_train_on_equally_many_batches_and_on_every_question(n: int, world: int) -> None:
    lengths = skewed_lengths(n)
    ranks = [list(TrainBatches(lengths, 4, seed=0, rank=rank, world=world)) for rank in range(world)]
    assert len({len(batches) for batches in ranks}) == 1
    assert all(batch for batches in ranks for batch in batches)
    seen = sorted(row for batches in ranks for batch in batches for row in batch)
    assert set(seen) == set(range(n))
    assert len(seen) < n + world


def test_ranks_together_see_what_one_process_with_the_larger_batch_sees() -> None:
    lengths = skewed_lengths(100)
    alone = list(TrainBatches(lengths, 12, seed=0))
    ranks = [list(TrainBatches(lengths, 4, seed=0, rank=rank, world=3)) for rank in range(3)]
    together = [flat(parts) for parts in zip(*ranks, strict=True)]
    assert together == [sorted(batch) for batch in alone]


@pytest.mark.parametrize("n", [0, 1, 5, 16, 33])
@pytest.mark.parametrize("world", [1, 2, 5])
def test_evaluation_sees_every_question_exactly_once_on_any_number_of_ranks(n: int, world: int) -> None:
    ranks = [EvalBatches(skewed_lengths(n), 4, rank=rank, world=world) for rank in range(world)]
    assert sorted(row for batches in ranks for batch in batches for row in batch) == list(range(n))
    assert all(len(list(batches)) == len(batches) for batches in ranks)


def test_evaluation_goes_from_long_to_short() -> None:
    lengths = skewed_lengths(50)
    rows = [row for batch in EvalBatches(lengths, 4) for row in batch]
    assert [lengths[row] for row in rows] == sorted(lengths, reverse=True)


def test_drop_last_leaves_out_what_does_not_fill_a_batch() -> None:
    train = TrainBatches([1] * 11, 4, seed=0, how="sequential", drop_last=True)
    assert list(train) == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert len(train) == 2


@pytest.mark.parametrize(("batch_size", "world"), [(12, 1), (6, 2)])
def test_training_without_one_full_batch_is_refused(batch_size: int, world: int) -> None:
    """The trainer would end at once and leave weights that were never trained."""
    with pytest.raises(UsageError, match="11 training questions fill no batch of"):
        TrainBatches([1] * 11, batch_size, seed=0, how="sequential", drop_last=True, world=world)
