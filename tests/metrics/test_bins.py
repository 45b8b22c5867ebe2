"""Bins and the floor of the ECE, against enumeration, simulation and torchmetrics."""

import itertools

import pytest
import torch
from torchmetrics.functional.classification import multiclass_calibration_error

from bayeslora.metrics.bins import CorrectCount, bin_index, ece_floor
from bayeslora.metrics.calibration import ECE


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("n_bins", [10, 15, 20])
def test_bins_are_right_closed_and_end_at_one(n_bins: int, dtype: torch.dtype) -> None:
    edges = torch.tensor([k / n_bins for k in range(1, n_bins + 1)], dtype=dtype)
    assert bin_index(edges, n_bins).tolist() == list(range(n_bins))
    above = torch.nextafter(edges[:-1], torch.ones(()).to(dtype))
    assert bin_index(above, n_bins).tolist() == list(range(1, n_bins))
    assert bin_index(torch.zeros(1, dtype=dtype), n_bins).item() == 0


def test_certainty_shares_the_last_bin() -> None:
    probs = torch.tensor([[1.0, 0.0], [0.95, 0.05]])
    label = torch.tensor([1, 0])
    ours = ECE(10)(probs, label)
    assert ours.item() == pytest.approx(0.475)
    theirs = multiclass_calibration_error(probs, label, num_classes=2, n_bins=10)
    assert theirs.item() == pytest.approx(0.525)  # their bin of its own for 1; when this fails, the fault is mended


@pytest.mark.parametrize("n_bins", [10, 15, 20])
def test_ece_agrees_with_torchmetrics_inside_the_bins(n_bins: int) -> None:
    generator = torch.Generator().manual_seed(n_bins)
    probs = torch.randn(2000, 5, generator=generator, dtype=torch.float64).mul(2).softmax(-1)
    label = torch.randint(5, (2000,), generator=generator)
    theirs = multiclass_calibration_error(probs, label, num_classes=5, n_bins=n_bins)
    assert ECE(n_bins)(probs, label).item() == pytest.approx(theirs.item(), abs=1e-6)  # theirs is float32


def test_constant_confidence_gives_its_distance_from_accuracy() -> None:
    probs = torch.tensor([[0.8, 0.2]]).expand(10, 2)
    label = torch.tensor([0] * 6 + [1] * 4)
    assert ECE(15)(probs, label).item() == pytest.approx(0.2, abs=1e-6)


def test_law_of_the_count_by_enumeration() -> None:
    chances = torch.tensor([0.1, 0.5, 0.5, 0.97, 1.0, 0.3], dtype=torch.float64)
    want = torch.zeros(7, dtype=torch.float64)
    for outcome in itertools.product([0, 1], repeat=6):
        happened = torch.tensor(outcome, dtype=torch.bool)
        want[sum(outcome)] += torch.where(happened, chances, 1 - chances).prod()
    law = CorrectCount.of(chances)
    assert torch.allclose(law.pmf, want, atol=1e-14)
    assert law.values.tolist() == list(range(7))
    assert torch.allclose(law.mean_deviation, (want * (torch.arange(7) - chances.sum()).abs()).sum())


@pytest.mark.parametrize("chance", [0.5, 0.9, 0.9999])
def test_law_of_many_equal_chances_is_binomial(chance: float) -> None:
    n = 6000
    law = CorrectCount.of(torch.full((n,), chance, dtype=torch.float64))
    binomial = torch.distributions.Binomial(n, torch.tensor(chance, dtype=torch.float64))
    want = binomial.log_prob(law.values.double()).exp()
    assert len(law.values) < n / 2
    assert torch.allclose(law.pmf, want, atol=1e-11)
    low, high = law.interval(0.95)
    inside = (law.values >= low) & (law.values <= high)
    shorter = (law.values > low) & (law.values < high)
    assert want[inside].sum() >= 0.95 > want[shorter].sum()


def test_certain_predictions_have_no_floor() -> None:
    assert ece_floor(torch.ones(100), 15).item() == pytest.approx(0, abs=1e-12)
    assert CorrectCount.of(torch.ones(5)).interval(0.95) == (5, 5)


def test_floor_is_the_mean_ece_of_calibrated_draws() -> None:
    generator = torch.Generator().manual_seed(0)
    confidence = torch.rand(300, generator=generator, dtype=torch.float64) / 2 + 0.5
    probs = torch.stack([confidence, 1 - confidence], dim=-1)
    draws = [
        ECE(15)(probs, (torch.rand(300, generator=generator, dtype=torch.float64) > confidence).long())
        for _ in range(400)
    ]
    eces = torch.stack(draws)
    error = 4 * eces.std() / 400**0.5
    assert (eces.mean() - ece_floor(confidence, 15)).abs() < error < 0.1 * eces.mean()
