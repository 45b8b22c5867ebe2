"""Risk-coverage curves against closed forms and brute force."""

import itertools

import torch

from bayeslora.metrics.selective import risk_curve


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
