"""The KL's weights over a cycle against their closed forms."""

import itertools
import math

import pytest

from bayeslora import UsageError
from bayeslora.lightning_modules.kl_schedule import KLSchedule, cyclic_share, release_cycle


@pytest.mark.parametrize("cycle", [1, 2, 7, 50])
def test_shares_double_and_add_up_to_almost_one(cycle: int) -> None:
    shares = [cyclic_share(step, cycle) for step in range(cycle)]
    assert sum(shares) == pytest.approx(1 - 1 / (2 ** (cycle + 1) - 1), rel=1e-12)
    assert all(b / a == pytest.approx(2) for a, b in itertools.pairwise(shares))
    assert [cyclic_share(step + 3 * cycle, cycle) for step in range(cycle)] == shares


def test_long_cycles_do_not_overflow() -> None:
    shares = [cyclic_share(step, 2000) for step in range(2000)]
    assert all(map(math.isfinite, shares))
    assert sum(shares) == pytest.approx(1)
    assert shares[-1] == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("questions", "cycle"), [(640, 316), (2558, 544), (1119, 393), (2251, 518), (4957, 706), (9427, 909)]
)
def test_cycle_of_the_release(questions: int, cycle: int) -> None:
    assert release_cycle(questions, batch_size=4) == cycle
    assert KLSchedule.of_release(questions, 4) == KLSchedule("cyclic", cycle, 1.0)
    assert abs(release_cycle(questions, batch_size=4, processes=2) - cycle / 2) <= 1


@pytest.mark.parametrize("kind", ["constant", "cyclic"])
def test_an_epoch_adds_up_to_the_evidence_lower_bound(kind: str) -> None:
    schedule = KLSchedule.over_epoch(kind, batches=24, questions=95, weight=0.5)
    weights = [schedule.weight(step) for step in range(24, 48)]
    assert sum(weights) == pytest.approx(0.5 * 24 / 95, rel=1e-6)
    if kind == "constant":
        assert weights == [pytest.approx(0.5 / 95)] * 24


@pytest.mark.parametrize("arguments", [("late", 3, 1.0), ("cyclic", 0, 1.0), ("constant", 3, -1.0)])
def test_bad_schedules(arguments: tuple) -> None:
    with pytest.raises(UsageError, match="allowed"):
        KLSchedule(*arguments)
