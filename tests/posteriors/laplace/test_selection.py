"""Choosing by validation: the search, its bounds, and what is refused."""

import pytest
import torch

from bayeslora.errors import UsageError
from bayeslora.posteriors.laplace.curvature import BlockCurvature
from bayeslora.posteriors.laplace.diagonal import DiagonalBlock, DiagonalPosterior
from bayeslora.posteriors.laplace.evidence import Evidence
from bayeslora.posteriors.laplace.selection import Validation, choose, minimise


def test_the_search_finds_the_least_of_several_minima() -> None:
    def valleys(x: torch.Tensor) -> float:
        return float(-2 * torch.exp(-((x - 7) ** 2)).sum() - torch.exp(-((x + 1) ** 2)).sum())

    for size in (1, 2):
        found = minimise(valleys, torch.zeros(size, dtype=torch.float64))
        torch.testing.assert_close(found, torch.full_like(found, 7.0), atol=5e-3, rtol=0)
    apart = torch.tensor([3.0, -5.0], dtype=torch.float64)
    found = minimise(lambda x: float(((x - apart) ** 2).sum()), torch.zeros(2, dtype=torch.float64))
    torch.testing.assert_close(found, apart, atol=5e-3, rtol=0)


def test_the_search_stays_within_reach() -> None:
    found = minimise(lambda x: float(x.sum()), torch.tensor([1.0, 2.0], dtype=torch.float64), reach=3.0)
    torch.testing.assert_close(found, torch.tensor([-2.0, -1.0], dtype=torch.float64), atol=5e-3, rtol=0)


def fixture(n: int = 40) -> tuple[BlockCurvature, Evidence, Validation]:
    """Two options, one weight a question; overconfident by a factor of three."""
    generator = torch.Generator().manual_seed(0)
    truth = torch.randn(n, dtype=torch.float64, generator=generator)
    label = (torch.rand(n, dtype=torch.float64, generator=generator) < truth.sigmoid()).long()
    gaussian = DiagonalPosterior({"w": torch.ones(1, 1)}, {"w": DiagonalBlock(torch.ones(1, 1).double())}, 1.0)
    jacobian = [{"w": torch.ones(n, 1, 1, 1)}]
    curvature = BlockCurvature(gaussian, {"all": ["w"]}, lambda: jacobian)
    evidence = Evidence(0.0, torch.ones(1, dtype=torch.float64), curvature.log_det)
    return curvature, evidence, Validation(3 * truth[:, None], label)


def test_validation_finds_the_precision_of_least_nll() -> None:
    curvature, evidence, validation = fixture()
    choice = choose(curvature, evidence, validation, "validation")

    def nll(precision: float) -> float:
        return validation.nll(curvature.covariance(torch.tensor([precision], dtype=torch.float64)))

    best = choice.precisions.item()
    assert choice.notes["validation_nll"] == pytest.approx(nll(best))
    assert choice.notes["validation_nll"] < choice.notes["validation_nll_of_the_mean"] - 0.05
    assert all(nll(best) <= nll(best * factor) + 1e-9 for factor in (0.1, 0.5, 2.0, 10.0))
    tuned = choose(curvature, evidence, validation, "evidence", scale="validation", temperature="validation")
    assert tuned.notes["validation_nll"] <= nll(evidence.best().item())
    assert 0.04 < tuned.scale < 21
    assert 1.5 < tuned.temperature < 21
    fixed = choose(curvature, evidence, validation, 2.5, scale=4.0)
    scaled = curvature.posterior(fixed.precisions, fixed.scale).logit_covariance({"w": torch.ones(1, 1, 1, 1)})
    assert scaled.item() == pytest.approx(4 / (1 + 2.5))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precision": "marglik"}, "precision is 'marglik'; allowed: evidence, validation, or a number"),
        ({"precision": 0.0}, r"precision is 0\.0"),
        ({"precision": 1.0, "scale": "evidence"}, "scale is 'evidence'"),
        ({"precision": 1.0, "temperature": -1.0}, r"temperature is -1\.0"),
    ],
)
def test_what_is_not_allowed(options: dict, message: str) -> None:
    curvature, evidence, validation = fixture()
    with pytest.raises(UsageError, match=message):
        choose(curvature, evidence, validation, **options)
    with pytest.raises(UsageError, match="no validation questions"):
        choose(curvature, evidence, None, "validation")
