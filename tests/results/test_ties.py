"""Ties with the best: they keep their level where rows are equal, and tell rows apart that are not."""

import pytest
import torch

from bayeslora.metrics.calibration import ECE
from bayeslora.results.comparison.ties import TESTED, _ece, best_rows, holm
from tests.helpers.equal_rows import answers, equal_rows


def _called_worse(metric: str, k: int, draws: int) -> int:
    """In how many draws some row is called worse than the best, of rows that are equal."""
    generator = torch.Generator().manual_seed(0)
    return sum(len(best_rows(metric, equal_rows(k, generator))) < k for _ in range(draws))


@pytest.mark.parametrize(("metric", "k"), [("nll", 2), ("nll", 6), ("accuracy", 6), ("brier", 12)])
def test_equal_rows_are_told_apart_in_five_percent_of_columns(metric: str, k: int) -> None:
    assert _called_worse(metric, k, 500) <= 37  # of 25 at most; more than 37 have a probability below 1 %


def test_equal_rows_keep_the_level_in_ece_too() -> None:
    assert _called_worse("ece_15", 5, 60) <= 8  # of 3 at most; more than 8 have a probability below 1 %


@pytest.mark.parametrize("metric", ["nll", "accuracy", "ece_15"])
def test_a_row_that_is_worse_is_no_tie(metric: str) -> None:
    rows = equal_rows(3, torch.Generator().manual_seed(1))
    worse = [answers(torch.randn_like(a.probs) * 8, a.label) for a in rows["0"]]
    found = best_rows(metric, {**rows, "worse": worse})
    assert found
    assert found <= {"0", "1", "2"}


def test_rows_that_are_alike_in_every_question_are_tied() -> None:
    rows = equal_rows(1, torch.Generator().manual_seed(2))
    for metric in TESTED:
        assert best_rows(metric, {"a": rows["0"], "b": rows["0"]}) == {"a", "b"}


def test_of_one_question_nothing_is_known() -> None:
    rows = {
        name: [answers(a.probs[:1], a.label[:1]) for a in seeds]
        for name, seeds in equal_rows(3, torch.Generator().manual_seed(2)).items()
    }
    assert all(best_rows(metric, rows) == set() for metric in TESTED)


def test_a_row_with_fewer_seeds_is_never_marked() -> None:
    rows = equal_rows(3, torch.Generator().manual_seed(3))
    assert best_rows("nll", {**rows, "2": rows["2"][:1]}) <= {"0", "1"}
    assert best_rows("auroc_total", rows) == set()


def test_the_calibration_error_is_the_metrics_own() -> None:
    rows = equal_rows(2, torch.Generator().manual_seed(4), seeds=1)
    values, errors, _ = _ece(rows)
    for name, (run,) in rows.items():
        metric = ECE()
        metric.update(run.probs, run.label)
        assert values[name] == pytest.approx(float(metric.compute()), abs=1e-12)
    assert errors["0", "1"] > 0


def test_holm_by_hand() -> None:
    p = {("a", "b"): 0.01, ("a", "c"): 0.04, ("b", "c"): 0.02}
    assert holm(p) == {("a", "b"), ("b", "c"), ("a", "c")}  # 0.01 * 3, 0.02 * 2, 0.04 * 1
    assert holm({**p, ("a", "b"): 0.02}) == set()  # 0.02 * 3 is above 0.05, and nothing follows
