"""Predictive: averages of probabilities, entropies, temperature, and the Gaussian link."""

import math

import pytest
import torch

from bayeslora.curvature.link import LINKS, link
from bayeslora.quadrature import normal_nodes
from bayeslora.types import Predictive, Samples

LN = math.log


def members(*rows: list[float]) -> Predictive:
    """One question; each row is a member's probabilities."""
    return Predictive.from_logits(torch.tensor(rows, dtype=torch.float64).log()[:, None])


def test_two_members_sure_of_different_classes_disagree_fully() -> None:
    p = members([1, 0, 0], [0, 1, 0])
    assert p.total.item() == pytest.approx(LN(2))
    assert p.aleatoric.item() == pytest.approx(0, abs=1e-12)
    assert p.epistemic.item() == pytest.approx(LN(2))


def test_overlapping_members() -> None:
    p = members([0.5, 0.5, 0, 0], [0, 0, 0.5, 0.5])
    assert p.total.item() == pytest.approx(LN(4))
    assert p.aleatoric.item() == pytest.approx(LN(2))
    assert p.epistemic.item() == pytest.approx(LN(2))
    assert members([0.2] * 5).total.item() == pytest.approx(1.6094379)


def test_identical_members_have_no_epistemic_uncertainty() -> None:
    logits = torch.randn(1, 20, 5, generator=torch.Generator().manual_seed(0)).expand(7, -1, -1)
    assert Predictive.from_logits(logits).epistemic.abs().max() < 1e-12


def test_probabilities_are_averaged_not_logits() -> None:
    p = Predictive.from_logits(torch.tensor([[4.0, 0, 0], [0, 2.0, 0]])[:, None])
    torch.testing.assert_close(
        p.probs[0], torch.tensor([0.5356, 0.4023, 0.0621], dtype=torch.float64), atol=1e-4, rtol=0
    )


def test_identities_with_absent_options() -> None:
    logits = torch.randn(6, 50, 5, generator=torch.Generator().manual_seed(1)) * 4
    logits[:, ::2, 3:] = -torch.inf
    p = Predictive.from_logits(logits)
    options = torch.isfinite(logits[0]).sum(-1).double()
    torch.testing.assert_close(p.probs.sum(-1), torch.ones(50, dtype=torch.float64))
    torch.testing.assert_close(p.total - p.aleatoric, p.epistemic, atol=1e-12, rtol=1e-9)
    bound = torch.minimum(options.log(), torch.tensor(LN(6)))
    assert (p.epistemic <= torch.minimum(bound, p.total) + 1e-12).all()
    torch.testing.assert_close(p.nll(torch.ones(50, dtype=torch.long)), -p.probs[:, 1].log())
    shuffled = Predictive.from_logits(logits[[3, 1, 5, 0, 2, 4]])
    torch.testing.assert_close(shuffled.epistemic, p.epistemic)


def test_temperature() -> None:
    logits = torch.randn(4, 10, 5, generator=torch.Generator().manual_seed(2))
    logits[:, 0, 4] = -torch.inf
    p = Predictive.from_logits(logits)
    torch.testing.assert_close(p.tempered(1.0).probs, p.probs)
    expected = (logits.double() / 3).softmax(-1).mean(0)
    torch.testing.assert_close(p.tempered(3.0).probs, expected)
    t = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    p.tempered(t).nll(torch.zeros(10, dtype=torch.long)).sum().backward()
    step = 1e-6
    high, low = (p.tempered(2 + e).nll(torch.zeros(10, dtype=torch.long)).sum() for e in (step, -step))
    assert t.grad.item() == pytest.approx(((high - low) / (2 * step)).item(), rel=1e-6)


def test_gaussian_moments_and_limits() -> None:
    for dimension in (1, 3, 4):
        nodes, weights = normal_nodes(dimension)
        assert weights.sum().item() == pytest.approx(1, abs=1e-12)
        torch.testing.assert_close(weights @ nodes, torch.zeros(dimension, dtype=torch.float64), atol=1e-9, rtol=0)
        second = torch.einsum("s,si,sj->ij", weights, nodes, nodes)
        torch.testing.assert_close(second, torch.eye(dimension, dtype=torch.float64), atol=5e-3, rtol=0)
    mean = torch.tensor([[1.0, -2.0], [0.5, -torch.inf]])
    sure = Predictive.from_gaussian(mean, torch.zeros(2, 2, 2))
    torch.testing.assert_close(sure.probs, torch.nn.functional.pad(mean.double(), (1, 0)).softmax(-1))
    assert sure.epistemic.abs().max() < 1e-12


def test_binary_gaussian_equals_a_fine_quadrature() -> None:
    for mean, sd in ((0.3, 0.5), (2.0, 3.0), (-4.0, 20.0)):
        z = torch.linspace(-12, 12, 2_000_001, dtype=torch.float64)
        w = torch.exp(-0.5 * z**2)
        expected = (w / w.sum() * torch.sigmoid(mean + sd * z)).sum().item()
        law = torch.tensor([[mean]], dtype=torch.float64), torch.tensor([[[sd**2]]], dtype=torch.float64)
        assert Predictive.from_gaussian(*law).probs[0, 1].item() == pytest.approx(expected, abs=1e-11)


def test_gaussian_with_four_options_equals_monte_carlo() -> None:
    generator = torch.Generator().manual_seed(3)
    root = torch.randn(3, 3, generator=generator, dtype=torch.float64)
    mean = torch.tensor([[1.0, 0.0, -1.0]], dtype=torch.float64)
    draws = mean + torch.randn(1_000_000, 3, generator=generator, dtype=torch.float64) @ root.T
    p = torch.nn.functional.pad(draws, (1, 0)).softmax(-1)
    se = p.std(0) / 1000
    gaussian = Predictive.from_gaussian(mean, (root @ root.T)[None])
    assert ((gaussian.probs[0] - p.mean(0)).abs() < 5 * se + 1e-4).all()
    torch.testing.assert_close(
        gaussian.tempered(2.0).probs, Predictive.from_gaussian(mean / 2, (root @ root.T)[None] / 4).probs
    )


def test_samples_must_agree() -> None:
    with pytest.raises(ValueError, match="agree"):
        Samples({"a": torch.zeros(2, 3)}, torch.arange(3))
    with pytest.raises(ValueError, match="agree"):
        Samples()


def _laws() -> tuple[torch.Tensor, torch.Tensor]:
    """Five questions of two to five options, the widest last."""
    generator = torch.Generator().manual_seed(4)
    root = torch.randn(5, 4, 4, generator=generator, dtype=torch.float64) * 2
    present = torch.arange(4) < torch.tensor([1, 2, 3, 2, 4])[:, None]
    mean = torch.randn(5, 4, generator=generator, dtype=torch.float64).masked_fill(~present, -torch.inf)
    return mean, (root @ root.mT).masked_fill(~(present[:, :, None] & present[:, None, :]), 0.0)


def _numbers(p: Predictive) -> list[torch.Tensor]:
    found = [p.probs, p.total, p.aleatoric, p.epistemic, p.nll(torch.zeros(len(p.probs), dtype=torch.long))]
    return [found[0], *(value[:, None] for value in found[1:])]


@pytest.mark.parametrize("name", LINKS)
def test_a_law_predicts_the_same_beside_wider_questions(name: str) -> None:
    mean, cov = _laws()
    predict = link(name, 50, 0)
    together = _numbers(predict(mean, cov))
    for row, d in enumerate([1, 2, 3, 2, 4]):
        alone = _numbers(predict(mean[row : row + 1, :d], cov[row : row + 1, :d, :d]))
        for value, found in zip(alone, together, strict=True):
            torch.testing.assert_close(found[row : row + 1, : value.shape[1]], value, atol=1e-13, rtol=0)


def test_a_law_keeps_its_temperature_beside_wider_questions() -> None:
    mean, cov = _laws()
    together = Predictive.from_gaussian(mean, cov).tempered(2.0).to("cpu")
    alone = Predictive.from_gaussian(mean[:1, :1], cov[:1, :1, :1]).tempered(2.0)
    torch.testing.assert_close(together.probs[:1, :2], alone.probs, atol=1e-13, rtol=0)
    torch.testing.assert_close(together.aleatoric[:1], alone.aleatoric, atol=1e-13, rtol=0)
    assert len(Predictive.from_gaussian(mean[:0], cov[:0]).probs) == 0
