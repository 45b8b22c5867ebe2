"""Answers keep what a predictive says, and split its uncertainty as the closed forms do."""

import math
from dataclasses import replace

import pytest
import torch

from bayeslora.metrics.answers import UNKNOWN, Answers
from bayeslora.types import Predictive


def answers(members: list[list[float]]) -> Answers:
    """One question, as members say its probabilities."""
    return Answers.from_predictive(Predictive.from_logits(torch.tensor(members, dtype=torch.float64).log()[:, None]))


def test_two_certain_members_that_disagree() -> None:
    got = replace(answers([[1 - 1e-15, 1e-15], [1e-15, 1 - 1e-15]]))
    assert got.total.item() == pytest.approx(math.log(2))
    assert got.epistemic.item() == pytest.approx(math.log(2))
    assert got.aleatoric.item() == pytest.approx(0, abs=1e-12)


def test_half_of_each() -> None:
    got = Answers(
        probs=torch.full((1, 4), 0.25, dtype=torch.float64),
        label=torch.zeros(1).long(),
        options=torch.tensor([4]),
        members=torch.tensor([[[0.5, 0.5, 0, 0], [0, 0, 0.5, 0.5]]], dtype=torch.float64),
    )
    assert got.total.item() == pytest.approx(math.log(4))
    assert got.aleatoric.item() == pytest.approx(math.log(2)) == got.epistemic.item()


def test_identical_members_know_what_they_know() -> None:
    got = answers([[0.7, 0.2, 0.1]] * 5)
    assert got.epistemic.item() < 1e-12
    assert got.aleatoric.item() == pytest.approx(got.total.item())


@pytest.mark.parametrize("kind", ["members", "gaussian"])
def test_uncertainties_are_those_of_the_predictive(kind: str) -> None:
    generator = torch.Generator().manual_seed(0)
    if kind == "members":
        predictive = Predictive.from_logits(torch.randn(4, 300, 3, generator=generator))
    else:
        root = torch.randn(300, 1, 1, generator=generator)
        predictive = Predictive.from_gaussian(root[:, 0], root.square())
    got = Answers.from_predictive(predictive)
    for name in ("probs", "total", "aleatoric", "epistemic"):
        assert torch.allclose(getattr(got, name), getattr(predictive, name), atol=1e-12), name
    assert torch.allclose(got.total, got.aleatoric + got.epistemic, atol=1e-9)
    assert (got.label == UNKNOWN).all()


def test_batches_of_different_widths_join() -> None:
    generator = torch.Generator().manual_seed(0)
    wide = torch.randn(2, 3, 4, generator=generator)
    narrow = torch.randn(2, 2, 2, generator=generator)
    parts = [Answers.from_predictive(Predictive.from_logits(logits, logits.logsumexp(-1))) for logits in (narrow, wide)]
    joined = Answers.concatenate(parts)
    padded = torch.cat([torch.nn.functional.pad(narrow, (0, 2), value=-torch.inf), wide], dim=1)
    want = Answers.from_predictive(Predictive.from_logits(padded, padded.logsumexp(-1)))
    for name, tensor in want.tensors().items():
        assert torch.equal(getattr(joined, name), tensor), name
    again = joined[torch.tensor([4, 0])]
    assert torch.equal(again.probs, want.probs[[4, 0]])
    assert again.options.tolist() == [4, 2]


def test_refusals() -> None:
    gap = torch.tensor([[[0.0, -torch.inf, 0.0]]])
    with pytest.raises(ValueError, match="absent options"):
        Answers.from_predictive(Predictive.from_logits(gap))
    uneven = Predictive(torch.zeros(2, 1, 1).double(), torch.tensor([0.3, 0.7]).double())
    with pytest.raises(ValueError, match="equal weights"):
        Answers.from_predictive(uneven)


@pytest.mark.parametrize("gaussian", [False, True])
def test_a_temperature_can_be_applied_to_what_was_kept(gaussian: bool) -> None:
    torch.manual_seed(0)
    if gaussian:
        factor = torch.randn(300, 2, 2, dtype=torch.float64)
        predictive = Predictive.from_gaussian(torch.randn(300, 2, dtype=torch.float64), factor @ factor.mT)
    else:
        predictive = Predictive.from_logits(torch.randn(4, 300, 3, dtype=torch.float64))
    told = {"true_probs": torch.full((300, 3), 1 / 3), "example_id": [f"q{i}" for i in range(300)]}
    got = replace(Answers.from_predictive(predictive, torch.ones(300)), **told).tempered(2.5)
    wanted = replace(Answers.from_predictive(predictive.tempered(2.5), torch.ones(300)), **told)
    assert got.example_id == wanted.example_id
    for name in ("probs", "label", "options", "true_probs", "total", "aleatoric"):
        torch.testing.assert_close(getattr(got, name), getattr(wanted, name), atol=1e-12, rtol=0)


@pytest.mark.parametrize("kept", [True, False])
def test_a_temperature_on_logits_that_are_far_apart_loses_no_option(kept: bool) -> None:
    logits = torch.tensor([[[0.0, -800.0, -1.0]], [[-900.0, 0.0, -2.0]]], dtype=torch.float64)
    predictive = Predictive.from_logits(logits)
    held = Answers.from_predictive(predictive)
    got = (held if kept else replace(held, logits=None)).tempered(100.0)
    assert (got.probs > 0).all()
    assert got.members is not None
    assert (got.members > 0).all()
    if kept:
        torch.testing.assert_close(got.probs, predictive.tempered(100.0).probs)
