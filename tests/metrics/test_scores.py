"""Scores per question against closed forms, enumeration and torchmetrics."""

import math

import pytest
import torch
import torchmetrics.functional.classification as tm

from bayeslora.metrics import scores

P = torch.tensor([[0.7, 0.2, 0.1], [0.25, 0.75, 0.0]], dtype=torch.float64)
TRUE = torch.tensor([[0.5, 0.5, 0.0], [0.9, 0.1, 0.0]], dtype=torch.float64)


def test_against_labels() -> None:
    label = torch.tensor([1, 1])
    assert scores.correct(P, label).tolist() == [False, True]
    assert torch.allclose(scores.nll(P, label), -torch.tensor([0.2, 0.75]).double().log())
    assert torch.allclose(scores.brier(P, label), torch.tensor([0.49 + 0.64 + 0.01, 2 * 0.0625]).double())
    assert torch.allclose(scores.confidence(P), torch.tensor([0.7, 0.75]).double())


def test_brier_spans_zero_to_two() -> None:
    certain = torch.eye(3).double()[:1]
    assert scores.brier(certain, torch.tensor([0])) == 0
    assert scores.brier(certain, torch.tensor([2])) == 2


def test_impossible_answer_costs_a_finite_loss() -> None:
    assert 700 < scores.nll(P, torch.tensor([0, 2]))[1] < 710


@pytest.mark.parametrize(
    ("expected", "score"), [(scores.expected_nll, scores.nll), (scores.expected_brier, scores.brier)]
)
def test_expectations_are_sums_over_labels(expected, score) -> None:
    by_label = torch.stack([score(P, torch.tensor([c, c])) for c in range(3)], dim=1)
    assert torch.allclose(expected(P, TRUE), (TRUE * by_label).sum(1))


def test_expected_accuracy_gap_and_divergence() -> None:
    assert torch.allclose(scores.expected_accuracy(P, TRUE), torch.tensor([0.5, 0.1]).double())
    assert torch.allclose(scores.expected_calibration_gap(P, TRUE), torch.tensor([0.2, 0.65]).double())
    want = 0.5 * math.log(0.5 / 0.7) + 0.5 * math.log(0.5 / 0.2)
    assert math.isclose(scores.divergence(P, TRUE)[0], want)
    assert torch.allclose(scores.divergence(TRUE, TRUE), torch.zeros(2).double())


def test_a_wrong_probability_costs_kl_more_than_the_truth() -> None:
    assert torch.allclose(scores.expected_nll(P, TRUE) - scores.expected_nll(TRUE, TRUE), scores.divergence(P, TRUE))


def test_outside_mass() -> None:
    vocabulary = torch.tensor([[0.0, 1.0, 2.0, 3.0]])
    options = torch.tensor([[1.0, 3.0, -torch.inf]])
    want = vocabulary.softmax(-1)[0, [0, 2]].sum().double()
    assert torch.allclose(scores.outside_mass(options, vocabulary.logsumexp(-1)), want, atol=1e-6)
    assert scores.outside_mass(options, options.logsumexp(-1) - 1e-6) == 0


def test_against_torchmetrics() -> None:
    generator = torch.Generator().manual_seed(0)
    probs = torch.randn(500, 4, generator=generator).softmax(-1)
    label = torch.randint(4, (500,), generator=generator)
    accuracy = tm.multiclass_accuracy(probs, label, num_classes=4, average="micro")
    assert torch.allclose(scores.correct(probs, label).float().mean(), accuracy)
    nll = torch.nn.functional.nll_loss(probs.log(), label)
    assert torch.allclose(scores.nll(probs, label).mean().float(), nll)
