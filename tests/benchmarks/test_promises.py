"""Promises are kept over calibration sets drawn from a known law, and the benchmark's counts would show it if not."""

import statistics
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import torch

from bayeslora.decisions import selective_risk
from bayeslora.metrics import Answers
from bayeslora.types import Predictive


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    import promises

    return promises


def answers(n: int, seed: int) -> Answers:
    """Three members around a true law."""
    noise = torch.Generator().manual_seed(seed)
    truth = 3 * torch.randn(n, 4, generator=noise, dtype=torch.float64)
    logits = truth + torch.randn(3, n, 4, generator=noise, dtype=torch.float64)
    label = torch.multinomial(truth.softmax(-1), 1, generator=noise).squeeze(1)
    made = Answers.from_predictive(Predictive.from_logits(logits), label)
    return replace(made, true_probs=truth.softmax(-1), key=torch.arange(n) + 10**6 * seed)


def test_promises_are_kept(script: ModuleType) -> None:
    population, selection = answers(3000, 0), answers(150, 1)
    found = script.thresholds(population, selection, 1000, 0.1, 0.1, seeds=60)
    assert found.broken <= found.limit
    assert found.certified == 60
    assert 0.5 * script.best_coverage(population, 0.1) < found.coverage < script.best_coverage(population, 0.1) + 0.02
    null = script.thresholds(script.at_null(population, 0.1), script.at_null(selection, 0.1), 300, 0.1, 0.1, seeds=60)
    assert null.broken == null.certified <= null.limit
    assert (found.limit, script.Thresholds(0.1, 0.1, 0, 0, 200, 0).limit) == (12, 30)
    assert script.Thresholds(0.1, 0.05, 0, 0, 200, 0).limit == 18


def test_the_counts_tell_a_broken_promise(script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """To take the laxest threshold whose answers look good enough, without a test, is caught by the null."""
    population, selection = script.at_null(answers(3000, 0), 0.1), script.at_null(answers(150, 1), 0.1)

    def laxest(tests: list[tuple[int, int]], risk: float, delta: float) -> int | None:
        passed = [i for i, (n, k) in enumerate(tests) if k <= risk * n]
        return passed[-1] if passed else None

    monkeypatch.setattr(selective_risk, "fixed_sequence", laxest)
    found = script.thresholds(population, selection, 300, 0.1, 0.1, seeds=60)
    assert found.broken > found.limit


def test_sets_cover_what_they_say(script: ModuleType) -> None:
    for row in script.prediction_sets(answers(3000, 0), answers(150, 1), 99, 0.1, seeds=60):
        assert abs(statistics.mean(row.coverage) - 0.9) < 2.6 * row.error
        assert all(served >= coverage for served, coverage in zip(row.served, row.coverage, strict=True))


def test_tables_show_intervals(script: ModuleType) -> None:
    row = script.Thresholds(0.05, 0.1, 190, 20, 200, 0.4)
    assert "| 20 | 0.100 [0.062, 0.150] | 30 |" in script.thresholds_table([("null", 0.0, row)])
    sets = script.Sets("lac", [0.9, 0.92], [0.9, 0.92], [1.2, 1.4])
    assert "| lac | 0.9 | 0.9100 ± 0.0200 | 0.9100 | 1.300 |" in script.sets_table([sets], 0.1)
