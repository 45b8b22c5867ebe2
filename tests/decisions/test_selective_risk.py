"""Thresholds against exact numbers, and the promise itself: counted over many calibration sets."""

import doctest
import math

import pytest
import torch
from scipy.stats import binom

from bayeslora.decisions import selective_risk
from bayeslora.decisions.selective_risk import (
    Promise,
    Scored,
    certify,
    fewest,
    fixed_sequence,
    informative,
    limits,
    p_value,
    upper_bound,
)


def test_examples() -> None:
    found = doctest.testmod(selective_risk)
    assert found.attempted >= 5
    assert found.failed == 0


@pytest.mark.parametrize(
    ("answered", "wrong", "expected"),
    [
        (45, 0, 0.09944),
        (44, 0, 0.10467),
        (77, 1, 0.09733),
        (76, 1, 0.10138),
        (200, 5, 0.06234),
        (200, 6, 0.12374),
        (59, 0, 0.04849),
        (58, 0, 0.05105),
    ],
)
def test_p_values(answered: int, wrong: int, expected: float) -> None:
    assert p_value(answered, wrong, 0.05) == pytest.approx(expected, abs=5e-6)
    assert p_value(answered, wrong, 0.05) == pytest.approx(binom.cdf(wrong, answered, 0.05), rel=1e-12)


@pytest.mark.parametrize(
    ("risk", "delta", "needed"),
    [
        (0.01, 0.1, [230, 388, 531, 667, None, 926]),
        (0.02, 0.1, [114, 194, 265, 333, None, 462]),
        (0.05, 0.1, [45, 77, 105, 132, None, 184]),
        (0.1, 0.1, [22, 38, 52, 65, None, 91]),
        (0.05, 0.05, [59, 93, 124, 153, None, 208]),
        (0.05, 0.1 / 3, [67]),
        (0.01, 0.1 / 20, [528]),
    ],
)
def test_the_fewest_answers_that_prove_a_risk(risk: float, delta: float, needed: list[int | None]) -> None:
    for wrong, expected in enumerate(needed):
        if expected is not None:
            assert fewest(risk, delta, wrong) == expected


def test_upper_bounds_agree_with_the_test() -> None:
    assert upper_bound(200, 5, 0.1) == pytest.approx(0.04588, abs=5e-6)
    assert upper_bound(200, 6, 0.1) == pytest.approx(0.05206, abs=5e-6)
    assert upper_bound(300, 10, 0.05) == pytest.approx(0.055885, abs=5e-7)
    assert upper_bound(40, 0, 0.1) == pytest.approx(1 - 0.1 ** (1 / 40))
    assert upper_bound(0, 0, 0.1) == upper_bound(7, 7, 0.1) == 1
    for answered, wrong in [(30, 0), (100, 3), (500, 20)]:
        assert p_value(answered, wrong, upper_bound(answered, wrong, 0.1)) == pytest.approx(0.1)


def test_the_sequence_ends_at_its_first_failure() -> None:
    tests = [(50, 0), (80, 1), (120, 2), (160, 5), (200, 5)]
    assert fixed_sequence(tests, 0.05, 0.1) == 2  # the laxest that passes by itself is the last
    assert p_value(*tests[-1], 0.05) < 0.1
    assert fixed_sequence([(44, 0), (200, 1)], 0.05, 0.1) is None  # and not the strictest
    assert fixed_sequence([], 0.05, 0.1) is None


def test_limits_stand_between_scores_and_begin_where_something_can_pass() -> None:
    selection = torch.arange(100.0, dtype=torch.float64).flip(0)
    wrong = selection > 79.5  # the 20 most uncertain
    found = limits(selection, wrong, 200, 0.05, 0.1)
    powers = {}
    for count in range(1, 101):
        k = max((k for k in range(2 * count) if binom.cdf(k, 2 * count, 0.05) <= 0.1), default=-1)
        powers[count - 0.5] = binom.cdf(k, 2 * count, (max(0, count - 80) + 0.5) / (count + 1)) if k >= 0 else 0
    assert found[0] == max(powers, key=powers.get)
    assert 70 < found[0] < 80
    assert math.isinf(found[-1])
    assert len(found) <= 40
    assert (found.diff() > 0).all()
    assert not (selection[:, None] == found).any()
    assert len(limits(selection, wrong, 44, 0.05, 0.1)) == 0
    assert limits(selection, wrong, 45, 0.05, 0.1).tolist() == [98.5, math.inf]  # .99 * 45 is 45
    tied = limits(torch.tensor([1.0, 1.0, 1.0, 2.0]), torch.tensor([False, False, False, True]), 1000, 0.2, 0.1)
    assert tied.tolist() == [1.5, math.inf]


def test_scores_that_tell_nothing_new_are_left_out() -> None:
    probs = torch.tensor([[0.9, 0.1], [0.6, 0.4], [0.7, 0.3]], dtype=torch.float64)
    scores = {"one_minus_confidence": 1 - probs.amax(1), "total": torch.special.entr(probs).sum(1)}
    assert informative(scores | {"epistemic": torch.zeros(3)}) == ["one_minus_confidence"]
    assert informative({"total": torch.zeros(3)}) == ["total"]
    other = torch.tensor([0.3, 0.1, 0.2], dtype=torch.float64)
    assert informative(scores | {"epistemic": other}) == ["one_minus_confidence", "epistemic"]


def one_score(errors: torch.Tensor, order: torch.Tensor, risk: float = 0.05, delta: float = 0.1) -> Promise:
    before = torch.linspace(0, 1, 500).double()
    return certify(
        Scored({"total": before}, before < 0), Scored({"total": order.double()}, errors), risk=risk, delta=delta
    )


def test_a_good_method_answers_all_and_a_bad_one_nothing() -> None:
    order = torch.linspace(0, 1, 200)
    good = one_score(order < 0, order)
    assert math.isinf(good.best.limit)
    assert good.best.coverage == 1
    assert good.best.p_value == pytest.approx(0.95**200)
    bad = one_score(order >= 0, order)
    assert bad.best is None
    assert "is not reached" in bad.reason


def test_too_few_questions_say_how_many_and_what_can_be_had() -> None:
    order = torch.linspace(0, 1, 40)
    promise = one_score(order < 0, order)
    assert promise.best is None
    assert "needs at least 45 answered questions without an error, 5 more than the 40 there are" in promise.reason
    assert "5.6 % at best" in promise.reason
    assert one_score(order < 0, order, risk=0.057).best is not None


def test_many_wrong_answers_of_one_score_promise_nothing_and_say_so() -> None:
    """The chance that so many errors pass is less than the smallest number there is: it rounds to zero."""
    wrong = torch.arange(1000) >= 100
    scored = Scored({"one_minus_confidence": torch.full((1000,), 0.75, dtype=torch.float64)}, wrong)
    promise = certify(scored, scored, 0.05, 0.1)
    assert promise.best is None
    assert "of the 1000 answers at the strictest threshold 900 are wrong" in promise.reason


def test_three_scores_share_delta() -> None:
    generator = torch.Generator().manual_seed(0)
    names = ("one_minus_confidence", "total", "epistemic")
    before, now = ({name: torch.rand(n, generator=generator).double() for name in names} for n in (100, 66))
    none = torch.zeros(200, dtype=torch.bool)
    promise = certify(Scored(before, none[:100]), Scored(now, none[:66]), 0.05, 0.1)
    assert "needs at least 67" in promise.reason
    assert "divided among 3 scores" in promise.reason
    now = {name: torch.rand(200, generator=generator).double() for name in names}
    promise = certify(Scored(before, none[:100]), Scored(now, none), 0.05, 0.1)
    assert {threshold.score for threshold in promise.thresholds} == set(names)
    assert {threshold.delta for threshold in promise.thresholds} == {0.1 / 3}


@pytest.mark.parametrize(("delta", "most"), [(0.1, 30), (0.05, 18)])
def test_the_promise_is_kept_where_every_threshold_is_just_above_the_risk(delta: float, most: int) -> None:
    """The sharpest null: any threshold that is certified breaks the promise; at most 30 (18) of 200 sets may do so."""
    generator = torch.Generator().manual_seed(1)
    scores = {name: torch.rand(200, generator=generator).double() for name in ("total", "epistemic")}
    selection = Scored(scores, torch.rand(200, generator=generator) < 0.102)
    broken = scans = 0
    for _ in range(200):
        scores = {name: torch.rand(500, generator=generator).double() for name in selection.scores}
        wrong = torch.rand(500, generator=generator) < 0.102
        broken += certify(selection, Scored(scores, wrong), 0.1, delta).best is not None
        grid = torch.linspace(0.2, 1, 40).double()
        answered = scores["total"][None] <= grid[:, None]
        tests = zip(answered.sum(1).tolist(), (answered & wrong).sum(1).tolist(), strict=True)
        scans += any(p_value(n, k, 0.1) <= delta for n, k in tests)
    assert broken <= most
    assert scans > most  # taking the laxest threshold that passes breaks the promise, so the count can tell
