"""Risk-coverage curves against closed forms and brute force."""

import itertools

import pytest
import torch

from bayeslora.metrics.selective import AURC, AccuracyAtCoverage, CoverageAtError, risk_curve


def test_a_perfect_order_declines_the_errors_first() -> None:
    confidence = torch.tensor([0.9, 0.5, 0.8, 0.6])
    right = torch.tensor([True, False, True, False])
    assert torch.allclose(risk_curve(confidence, right), torch.tensor([0, 0, 1 / 3, 1 / 2]).double())
    assert torch.allclose(risk_curve(-confidence, right), torch.tensor([1, 1, 2 / 3, 1 / 2]).double())


def test_ties_count_as_their_average_order() -> None:
    confidence = torch.tensor([0.7, 0.7, 0.7, 0.2, 0.9])
    right = torch.tensor([True, False, True, False, True])
    curves = []
    for order in itertools.permutations(range(3)):
        wrong = (~right).double()[[4, *order, 3]]
        curves.append(wrong.cumsum(0) / torch.arange(1, 6))
    assert torch.allclose(risk_curve(confidence, right), torch.stack(curves).mean(0))
    shuffled = torch.tensor([3, 1, 4, 0, 2])
    assert torch.equal(risk_curve(confidence[shuffled], right[shuffled]), risk_curve(confidence, right))


def test_area_under_the_curve_of_a_perfect_order() -> None:
    """With n questions and e errors, all declined first: the area is the sum over k > n - e of (k - n + e) / k / n."""
    n, e = 50, 12
    probs = torch.stack([torch.linspace(0.9, 0.6, n), torch.linspace(0.1, 0.4, n)], dim=-1).double()
    label = (torch.arange(n) >= n - e).long()
    want = sum((k - n + e) / k for k in range(n - e + 1, n + 1)) / n
    assert AURC()(probs, label).item() == pytest.approx(want)


def test_accuracy_at_coverage() -> None:
    probs = torch.stack([torch.linspace(0.9, 0.6, 10), torch.linspace(0.1, 0.4, 10)], dim=-1).double()
    label = torch.tensor([0, 0, 0, 1, 0, 0, 0, 1, 1, 1])
    want = {0.1: 1.0, 0.3: 1.0, 0.35: 0.75, 0.4: 0.75, 1.0: 0.6}
    for coverage, accuracy in want.items():
        assert AccuracyAtCoverage(coverage)(probs, label).item() == pytest.approx(accuracy)
    with pytest.raises(ValueError, match="coverage is 0"):
        AccuracyAtCoverage(0)


def test_coverage_at_error() -> None:
    """The largest number of answers that is good enough, though a smaller one is not; ties are answered together."""
    probs = torch.stack([torch.linspace(0.9, 0.6, 10), torch.linspace(0.1, 0.4, 10)], dim=-1).double()
    label = torch.tensor([0, 1, 0, 0, 0, 0, 0, 1, 1, 1])
    for error, coverage in {0.02: 0.1, 0.15: 0.7, 0.25: 0.8, 0.4: 1.0, 0.35: 0.9}.items():
        assert CoverageAtError(error)(probs, label).item() == pytest.approx(coverage)
    assert CoverageAtError(0.1)(probs[:1], label[1:2]).item() == 0
    tied = torch.full((4, 2), 0.5, dtype=torch.float64)
    assert CoverageAtError(0.3)(tied, torch.tensor([0, 0, 0, 1])).item() == 1
    assert CoverageAtError(0.2)(tied, torch.tensor([0, 0, 0, 1])).item() == 0
    with pytest.raises(ValueError, match="error is 1"):
        CoverageAtError(1)
