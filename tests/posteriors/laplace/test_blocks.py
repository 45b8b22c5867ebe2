"""Block-diagonal Gaussians against their dense covariances; from disk and back."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from bayeslora.errors import UsageError
from bayeslora.posteriors.laplace.blocks import BlockGaussian, covariance, draw
from bayeslora.posteriors.laplace.diagonal import DiagonalBlock, DiagonalPosterior
from bayeslora.posteriors.laplace.kronecker import KroneckerBlock, KroneckerPosterior
from bayeslora.posteriors.state import load_posterior, save_posterior

SHAPES = {"site.lora_A.weight": (3, 12), "site.lora_B.weight": (10, 3), "head.bias": (5,)}
PRECISION = {"site.lora_A.weight": 0.7, "site.lora_B.weight": 2.5, "head.bias": 0.1}
TIGHT = {"atol": 1e-12, "rtol": 1e-10}


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def kronecker(shape: tuple[int, ...], share: float) -> KroneckerBlock:
    """A block whose long side keeps a share of its directions."""
    sides = [size if size <= 3 else max(1, int(share * size)) for size in (*shape, 1)[:2]]
    bases = [torch.linalg.qr(random(size, k, seed=size))[0] for size, k in zip((*shape, 1)[:2], sides, strict=True)]
    return KroneckerBlock(10 * random(*sides).square(), *bases)


def gaussian(kind: str) -> BlockGaussian[Any]:
    mean = {name: random(*shape, seed=index).float() for index, (name, shape) in enumerate(SHAPES.items())}
    if kind == "diagonal":
        blocks = {name: DiagonalBlock(random(*(*shape, 1)[:2]).square()) for name, shape in SHAPES.items()}
        return DiagonalPosterior(mean, blocks, PRECISION)
    share = {"full": 1.0, "low-rank": 0.4}[kind]
    return KroneckerPosterior(mean, {name: kronecker(shape, share) for name, shape in SHAPES.items()}, PRECISION)


def dense_precision(posterior: BlockGaussian[Any], name: str) -> Tensor:
    block, (outputs, inputs) = posterior.blocks[name], (*SHAPES[name], 1)[:2]
    unit = torch.eye(outputs * inputs, dtype=torch.float64)
    curvature = block.back(block.rotate(unit.unflatten(1, (outputs, inputs))) * block.values).flatten(1)
    return curvature + posterior.precision[name] * unit


def jacobian(seed: int = 3) -> dict[str, Tensor]:
    return {name: random(4, 2, *shape, seed=seed + index) for index, (name, shape) in enumerate(SHAPES.items())}


KINDS = pytest.mark.parametrize("kind", ["full", "low-rank", "diagonal"])


@KINDS
def test_logit_covariance_is_that_of_the_dense_inverse(kind: str) -> None:
    posterior, rows = gaussian(kind), jacobian()
    expected = torch.zeros(4, 2, 2, dtype=torch.float64)
    for name, own in rows.items():
        inverse = torch.linalg.inv(dense_precision(posterior, name))
        expected += torch.einsum("bcp,pq,bdq->bcd", own.flatten(2), inverse, own.flatten(2))
    torch.testing.assert_close(posterior.logit_covariance(rows), expected, **TIGHT)
    single = {name: own.float() for name, own in rows.items()}
    found = posterior.logit_covariance(single)
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


@KINDS
def test_draws_have_the_dense_covariance(kind: str) -> None:
    posterior = gaussian(kind)
    for name, shape in SHAPES.items():
        outputs, inputs = (*shape, 1)[:2]
        unit = torch.eye(outputs * inputs, dtype=torch.float64).unflatten(1, (outputs, inputs))
        root = draw(posterior.blocks[name], posterior.precision[name], unit).flatten(1)
        torch.testing.assert_close(root.mT @ root, torch.linalg.inv(dense_precision(posterior, name)), **TIGHT)
    draws = posterior.sample(4000, torch.Generator().manual_seed(0))
    for name, mean in posterior.mean().items():
        variance = torch.linalg.inv(dense_precision(posterior, name)).diag().reshape(mean.shape)
        assert ((draws[name].mean(0) - mean).abs() < 5 * (variance / 4000).sqrt()).all()
        torch.testing.assert_close(draws[name].double().var(0), variance, atol=0, rtol=0.15)


@KINDS
def test_eigenvalues_give_the_log_determinant(kind: str) -> None:
    posterior = gaussian(kind)
    for name, values in posterior.eigenvalues().items():
        precision = dense_precision(posterior, name)
        expected = torch.linalg.slogdet(precision / posterior.precision[name])[1]
        torch.testing.assert_close((values / posterior.precision[name]).log1p().sum(), expected, **TIGHT)


@KINDS
def test_limits_of_the_priors_precision(kind: str) -> None:
    posterior, rows = gaussian(kind), jacobian()
    product = sum(torch.einsum("bcp,bdp->bcd", own.flatten(2), own.flatten(2)) for own in rows.values())
    torch.testing.assert_close(
        type(posterior)(posterior.mean(), posterior.blocks, 1e9).logit_covariance(rows) * 1e9,
        product,
        rtol=1e-6,
        atol=0,
    )
    without = type(posterior)(
        posterior.mean(),
        {name: vanishing(block) for name, block in posterior.blocks.items()},
        PRECISION,
    )
    gap = without.logit_covariance(rows) - posterior.logit_covariance(rows)
    assert torch.linalg.eigvalsh(gap).min() > 0  # data only ever take variance away


@KINDS
def test_a_scaled_posterior_has_its_covariance_divided(kind: str) -> None:
    posterior, rows = gaussian(kind), jacobian()
    found, expected = posterior.scaled(4.0).logit_covariance(rows), posterior.logit_covariance(rows) / 4
    torch.testing.assert_close(found, expected, **TIGHT)


def vanishing(block: Any) -> Any:
    if isinstance(block, DiagonalBlock):
        return DiagonalBlock(torch.zeros_like(block.values))
    return KroneckerBlock(torch.zeros_like(block.values), block.left, block.right)


def test_covariances_are_positive_in_single_precision_where_the_curvature_is_huge() -> None:
    block = kronecker((3, 12), 0.5)
    block = KroneckerBlock(block.values * 1e12, block.left, block.right).to(torch.device("cpu"), torch.float32)
    inside = block.back(random(20, 2, *block.values.shape).float())
    assert torch.linalg.eigvalsh(covariance(block, 1e-3, inside)).min() >= -1e-12


@KINDS
def test_a_parameter_without_a_block_is_certain(kind: str) -> None:
    whole = gaussian(kind)
    blocks = {name: block for name, block in whole.blocks.items() if name != "head.bias"}
    posterior = type(whole)(whole.mean(), blocks, 0.5)
    draws = posterior.sample(3, torch.Generator().manual_seed(0))
    assert draws["head.bias"].eq(whole.mean()["head.bias"]).all()
    assert draws["site.lora_A.weight"].var(0).min() > 0
    rows = jacobian()
    without = {**rows, "head.bias": torch.zeros_like(rows["head.bias"])}
    torch.testing.assert_close(posterior.logit_covariance(rows), posterior.logit_covariance(without))
    assert posterior.eigenvalues().keys() == blocks.keys()


@KINDS
@pytest.mark.parametrize("adapter", [None, {"peft_type": "LORA"}])
def test_from_disk_bit_for_bit(kind: str, adapter: dict[str, str] | None, tmp_path: Path) -> None:
    posterior = gaussian(kind)
    save_posterior(posterior, tmp_path / "posterior", adapter, base="abc")
    loaded = load_posterior(tmp_path / "posterior", base="abc")
    assert type(loaded) is type(posterior)
    assert loaded.precision == posterior.precision
    make: list[Callable[[Any], Any]] = [
        lambda p: p.mean(),
        lambda p: p.eigenvalues(),
        lambda p: p.sample(2, torch.Generator().manual_seed(1)),
    ]
    for of in make:
        found, expected = of(loaded), of(posterior)
        assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert torch.equal(loaded.logit_covariance(jacobian()), posterior.logit_covariance(jacobian()))


@pytest.mark.parametrize("precision", [0.0, -1.0, float("nan"), {"site.lora_A.weight": 1.0}])
def test_a_prior_that_is_none_is_refused(precision: Any) -> None:
    posterior = gaussian("full")
    with pytest.raises(UsageError, match=r"prior precision above 0"):
        type(posterior)(posterior.mean(), posterior.blocks, precision)
