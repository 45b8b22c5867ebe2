"""TFB's noise against its law, and its search against functions whose threshold is known."""

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from bayeslora.errors import RunError, UsageError
from bayeslora.posteriors.state import load_posterior, save_posterior
from bayeslora.posteriors.tfb import TFBPosterior, largest_accepted, noise_root

A, B = "layer.lora_A.weight", "layer.lora_B.weight"
OUT, RANK, IN = 7, 3, 5


def adapter(seed: int = 0, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = {A: (RANK, IN), B: (OUT, RANK)}
    return {name: torch.randn(shape, generator=generator).to(dtype) for name, shape in shapes.items()}


def test_noise_is_isotropic_in_the_column_space_of_the_update() -> None:
    up = adapter()[B]
    columns = (up @ noise_root(up)).double()
    torch.testing.assert_close(columns.T @ columns, torch.eye(RANK).double(), atol=1e-5, rtol=0)
    basis = torch.linalg.qr(up.double()).Q
    torch.testing.assert_close(columns @ columns.T, basis @ basis.T, atol=1e-5, rtol=0)


def test_rotated_factors_with_row_wise_noise_are_the_same_law() -> None:
    """As published: B' = U D, A' = V^T A, noise sigma / d_i on row i of A'; the product is the same."""
    mean = adapter()
    u, d, v = torch.linalg.svd(mean[B].double(), full_matrices=False)
    torch.testing.assert_close((u * d) @ (v @ mean[A].double()), mean[B].double() @ mean[A].double())
    published = (u * d) @ torch.diag(1 / d)  # of one column of epsilon
    ours = mean[B].double() @ noise_root(mean[B]).double()
    torch.testing.assert_close(published @ published.T, ours @ ours.T, atol=1e-5, rtol=0)


def test_law_does_not_depend_on_how_the_update_is_factored() -> None:
    mean, mix = adapter(), torch.tensor([[2.0, 1.0, 0.0], [0.5, -1.0, 3.0], [0.0, 0.2, 1.0]])
    other = mean[B] @ mix
    first, second = (up @ noise_root(up) for up in (mean[B], other))
    torch.testing.assert_close(first @ first.T, second @ second.T, atol=1e-5, rtol=0)
    assert not torch.allclose(noise_root(mean[B]), noise_root(other), atol=1e-2)


def test_samples_have_the_size_and_covariance_of_theory() -> None:
    posterior, sigma = TFBPosterior.around(adapter()).scaled(0.3), 0.3
    draws = posterior.sample(20_000, torch.Generator().manual_seed(1))
    noise = (draws[B] @ draws[A] - posterior.mean()[B] @ posterior.mean()[A]).double()
    assert noise.square().sum((1, 2)).mean().item() == pytest.approx(RANK * IN * sigma**2, rel=0.01)
    basis = torch.linalg.qr(posterior.mean()[B].double()).Q
    columns = noise.mT.flatten(0, 1)  # every column of the update is a draw
    assert (columns.T @ columns / len(columns) - sigma**2 * basis @ basis.T).norm() < 0.01 * sigma**2 * math.sqrt(RANK)
    assert torch.equal(posterior.sample(2, torch.Generator().manual_seed(1))[A], draws[A][:2])


def test_same_noise_at_every_sigma() -> None:
    posterior = TFBPosterior.around(adapter())
    small, large = (
        posterior.scaled(s).sample(2, torch.Generator().manual_seed(1))[A] - posterior.mean()[A] for s in (0.1, 0.2)
    )
    torch.testing.assert_close(2 * small, large, atol=1e-5, rtol=1e-5)


def test_without_noise_samples_are_the_adapter_bit_for_bit() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        mean = adapter(dtype=dtype)
        draws = TFBPosterior.around(mean).sample(3, torch.Generator().manual_seed(0))
        assert all(torch.equal(draw, mean[name].expand_as(draw)) for name, draw in draws.items())
        assert draws[A].dtype == dtype


@pytest.mark.parametrize("rank", [0, 1, 2])
def test_noise_stays_finite_and_in_the_range_where_the_rank_is_lost(rank: int) -> None:
    mean = adapter()
    left, right = torch.randn(OUT, rank), torch.randn(rank, RANK)
    posterior = TFBPosterior.around({**mean, B: left @ right}).scaled(0.3)
    root = posterior.state_dict()[f"root/{A}"]
    assert root.isfinite().all()
    up = posterior.mean()[B]
    assert (up @ root).square().sum().item() == pytest.approx(rank, abs=1e-3)
    draws = posterior.sample(2, torch.Generator().manual_seed(0))[A]
    assert (draws - mean[A]).abs().max() < 50
    assert rank > 0 or torch.equal(draws, mean[A].expand_as(draws))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_large_updates_have_noise_in_all_their_directions_and_no_others(dtype: torch.dtype) -> None:
    source = torch.Generator().manual_seed(0)
    up = torch.randn(4096, 8, generator=source) * torch.logspace(0, -1, 8)
    for rank in (8, 3):
        rounded = (up[:, :rank] @ torch.randn(rank, 8, generator=source)).to(dtype)
        columns = rounded.double() @ noise_root(rounded).double()
        values = torch.linalg.svdvals(columns)
        torch.testing.assert_close(values[:rank], torch.ones(rank).double(), atol=1e-3, rtol=0)
        assert (values[rank:] < 1e-3).all()


def test_the_noise_has_no_mean() -> None:
    """So that a linear layer's mean output is the adapter's."""
    posterior, count = TFBPosterior.around(adapter()).scaled(0.3), 20_000
    draws = posterior.sample(count, torch.Generator().manual_seed(1))[A]
    x = torch.randn(IN, generator=torch.Generator().manual_seed(2))
    outputs = (draws @ x) @ posterior.mean()[B].T
    plain = posterior.mean()[B] @ posterior.mean()[A] @ x
    assert ((outputs.mean(0) - plain).abs() < 4.5 * outputs.std(0) / count**0.5).all()
    assert (outputs.std(0) > 0.01).all()


def test_covariance_of_logits_is_that_of_samples() -> None:
    posterior = TFBPosterior.around(adapter()).scaled(0.3)
    jacobian = {A: torch.randn(4, 2, RANK, IN), B: torch.randn(4, 2, OUT, RANK)}
    noise = posterior.sample(40_000, torch.Generator().manual_seed(2))[A] - posterior.mean()[A]
    logits = torch.einsum("bcij,sij->bsc", jacobian[A], noise)
    sampled = torch.stack([torch.cov(own.T) for own in logits])
    torch.testing.assert_close(
        posterior.logit_covariance(jacobian), sampled, rtol=0.05, atol=0.02 * sampled.abs().max()
    )


def test_comes_back_from_disk_bit_for_bit(tmp_path: Path) -> None:
    posterior = TFBPosterior.around(adapter()).scaled({A: 0.2}, {"loss": 0.5})
    save_posterior(posterior, tmp_path / "posterior", {"peft_type": "LORA"}, "base")
    again = load_posterior(tmp_path / "posterior", "base")
    assert (again.sigma, again.record) == (posterior.sigma, posterior.record)
    draws = [p.sample(2, torch.Generator().manual_seed(0)) for p in (posterior, again)]
    assert all(torch.equal(draws[0][name], draws[1][name]) for name in (A, B))


def test_needs_lora() -> None:
    with pytest.raises(UsageError, match="lora_A and lora_B"):
        TFBPosterior.around({"head.weight": torch.zeros(2, 2)})
    with pytest.raises(UsageError, match="0 or more"):
        TFBPosterior.around(adapter()).scaled(-1.0)


# --- search ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("threshold", [0.0001, 0.0011, 0.004, 0.0149])
@pytest.mark.parametrize("iterations", [0, 3, 8])
def test_search_comes_close_from_below_and_is_never_infeasible(threshold: float, iterations: int) -> None:
    """A loss of l0 + c sigma^2 leaves the tolerance at sqrt(tolerance l0 / c)."""
    plain, tolerance = 0.7, 0.003
    growth = tolerance * plain / threshold**2
    tested: list[float] = []

    def accepted(sigma: float) -> bool:
        tested.append(sigma)
        return growth * sigma**2 <= tolerance * plain

    found = largest_accepted(accepted, 0.001, 0.015, iterations)
    assert found in tested
    assert found <= threshold
    bracket = 0.014 if threshold >= 0.001 else threshold  # a bracket that was moved spans a factor of two
    assert threshold - found <= bracket / 2**iterations
    assert len(tested) == len(set(tested))


def test_search_says_when_there_is_nothing_to_find() -> None:
    with pytest.raises(RunError, match="no sigma"):
        largest_accepted(lambda _: False, 0.001, 0.015, 5)
    tested: list[float] = []
    assert largest_accepted(lambda sigma: tested.append(sigma) or True, 0.001, 0.015, 5) == 0.015
    assert tested == [0.015]  # the upper end, since it was tested
