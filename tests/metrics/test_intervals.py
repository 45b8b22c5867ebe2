"""Intervals against scipy, closed forms, and the coverage they promise."""

import math

import pytest
import torch
from scipy.stats import binomtest, t

from bayeslora.metrics import ECE, auroc, bootstrap, over_seeds
from bayeslora.metrics.bins import bin_index
from bayeslora.metrics.intervals import clopper_pearson, student_quantile


@pytest.mark.parametrize("degrees", [1, 2, 3, 4, 9, 10, 63, 200])
@pytest.mark.parametrize("level", [0.5, 0.95, 0.999])
def test_student_quantiles(degrees: int, level: float) -> None:
    assert student_quantile(degrees, level) == pytest.approx(t.ppf((1 + level) / 2, degrees), rel=1e-10)


@pytest.mark.parametrize(("count", "total"), [(0, 6), (6, 6), (3, 7), (20, 200), (1, 1)])
def test_exact_intervals_of_a_proportion(count: int, total: int) -> None:
    expected = binomtest(count, total).proportion_ci(0.95)
    assert clopper_pearson(count, total) == pytest.approx((expected.low, expected.high), abs=1e-12)
    low, high = clopper_pearson(count, total)
    assert high - low > 0


def test_an_exact_interval_of_nothing_is_everything() -> None:
    assert clopper_pearson(0, 0) == (0, 1)


def test_over_seeds() -> None:
    mean, half = over_seeds([1.0, 2.0, 6.0])
    assert mean == 3
    assert half == pytest.approx(t.ppf(0.975, 2) * math.sqrt(7) / math.sqrt(3))
    assert over_seeds([0.4]) == (0.4, None)


def test_interval_of_a_mean_is_the_normal_one() -> None:
    values = (torch.arange(400) < 300).double()
    low, high = bootstrap({"accuracy": lambda weight: weight @ values / 400}, [400], resamples=4000)["accuracy"]
    half = 1.96 * math.sqrt(0.75 * 0.25 / 400)
    assert (low, high) == (pytest.approx(0.75 - half, abs=0.004), pytest.approx(0.75 + half, abs=0.004))


def test_resamples_are_a_function_of_the_seed_and_leave_the_generator_alone() -> None:
    values = torch.arange(50.0, dtype=torch.float64)
    before = torch.random.get_rng_state()
    runs = [bootstrap({"mean": lambda weight: weight @ values}, [50], 200, seed) for seed in (0, 0, 1)]
    assert runs[0] == runs[1] != runs[2]
    assert torch.equal(before, torch.random.get_rng_state())


def test_groups_are_resampled_apart() -> None:
    sizes = [30, 7]

    def check(weight: torch.Tensor) -> torch.Tensor:
        assert (weight[:, :30].sum(-1) == 30).all()
        assert (weight[:, 30:].sum(-1) == 7).all()
        return weight.sum(-1)

    assert bootstrap({"size": check}, sizes)["size"] == (37, 37)
    score = torch.cat([torch.linspace(0, 1, 30), torch.linspace(2, 3, 7)])
    positive = torch.arange(37) >= 30
    assert bootstrap({"auroc": lambda weight: auroc(score, positive, weight)}, sizes)["auroc"] == (1, 1)


def test_interval_of_an_ece_allows_for_its_shift() -> None:
    """A predictor that is 0.05 too confident in each of 15 bins: most quantile intervals lie above that."""
    generator = torch.Generator().manual_seed(0)
    confidence = (torch.arange(15, dtype=torch.float64) / 30 + 0.515).repeat_interleave(40)
    probs = torch.stack([confidence, 1 - confidence], dim=-1)
    in_bin = torch.nn.functional.one_hot(bin_index(confidence, 30), 30).double()
    reflected = quantiles = 0
    for _ in range(100):
        correct = (torch.rand(600, generator=generator) < confidence - 0.05).double()
        ece = ECE(30)(probs, 1 - correct.long()).item()
        gaps = in_bin * (correct - confidence)[:, None]
        low, high = bootstrap({"ece": lambda w, g=gaps: (w @ g).abs().sum(-1) / 600}, [600], resamples=300)["ece"]
        reflected += low <= 0.05 <= high
        quantiles += 2 * ece - high <= 0.05 <= 2 * ece - low
    assert reflected >= 75
    assert quantiles <= 30
