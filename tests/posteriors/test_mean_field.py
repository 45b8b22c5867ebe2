"""Mean-field Gaussians against closed forms, torch's own, and BLoB's theorem."""

import math
from pathlib import Path

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from bayeslora.errors import UsageError
from bayeslora.posteriors.mean_field import MeanField, normal_kl
from bayeslora.posteriors.state import load_posterior, save_posterior

B, A = "layer.lora_B.weight", "layer.lora_A.weight"


def mean_field(seed: int = 0) -> MeanField:
    generator = torch.Generator().manual_seed(seed)
    mean = {B: torch.randn(4, 2, generator=generator), A: torch.randn(2, 3, generator=generator)}
    return MeanField(mean, {A: torch.rand(2, 3, generator=generator) + 0.1})


def test_divergence_is_torchs_and_zero_at_the_prior() -> None:
    mean, std = torch.randn(50).double(), torch.rand(50).double() + 0.01
    torch.testing.assert_close(
        normal_kl(mean, std, 0.2), kl_divergence(Normal(mean, std), Normal(0.0, 0.2).expand([50]))
    )
    assert normal_kl(torch.zeros(1), torch.tensor([0.2]), 0.2).abs() < 1e-6
    assert normal_kl(torch.zeros(1), torch.tensor([0.25]), 0.2).item() == pytest.approx(0.05811, abs=1e-5)
    posterior = mean_field()
    parts = normal_kl(posterior.mean()[A], posterior.std()[A], 0.3)
    assert posterior.kl(0.3).item() == pytest.approx(parts.sum().item(), rel=1e-6)


def test_divergence_vanishes_at_the_prior_alone_and_adds_up_over_blocks() -> None:
    mean, std = torch.tensor([0.0, 0.01, 0.0, 0.0]).double(), torch.tensor([0.2, 0.2, 0.21, 0.19]).double()
    assert (normal_kl(mean, std, 0.2) > 1e-6).tolist() == [False, True, True, True]
    mean, std = mean_field().mean(), {name: value.abs() + 0.1 for name, value in mean_field(1).mean().items()}
    whole, *parts = (MeanField(mean, s).kl(0.2).item() for s in (std, {A: std[A]}, {B: std[B]}))
    assert whole == pytest.approx(sum(parts), rel=1e-12)


@pytest.mark.parametrize(("std", "bias"), [(1e-4, -0.0099), (2.5e-3, -3.9e-4)])
def test_divergence_of_a_small_spread_lacks_the_releases_bias(std: float, bias: float) -> None:
    """The release adds 1e-6 within the logarithm and to the denominator."""
    own = normal_kl(torch.zeros(1).double(), torch.tensor([std]).double(), 0.2)
    torch.testing.assert_close(own, kl_divergence(Normal(0.0, torch.tensor([std]).double()), Normal(0.0, 0.2)))
    released = math.log(0.2 + 1e-6) - math.log(std + 1e-6) + std**2 / (2 * 0.2**2 + 1e-6) - 0.5
    assert released - own.item() == pytest.approx(bias, rel=0.02)


def test_gradients_of_the_divergence() -> None:
    mean, std = (torch.tensor([v], dtype=torch.float64, requires_grad=True) for v in (0.3, 0.07))
    by_mean, by_std = torch.autograd.grad(normal_kl(mean, std, 0.2), (mean, std))
    assert by_mean.item() == pytest.approx(0.3 / 0.04)
    assert by_std.item() == pytest.approx(0.07 / 0.04 - 1 / 0.07)
    assert torch.autograd.gradcheck(lambda m, s: normal_kl(m, s, 0.2), (mean, std))


def test_divergence_over_A_is_that_over_the_full_weight() -> None:
    """BLoB, theorem 3.2: with the prior N(W0, sigma_p^2 B B^T) per column, on the range of B."""
    posterior, prior_std, scale = mean_field(), 0.2, 2.0
    up, mean = (posterior.mean()[name].double() for name in (B, A))
    std, basis = posterior.std()[A].double(), torch.linalg.qr(up).Q
    total = 0.0
    for column in range(mean.shape[1]):
        covariances = (torch.diag(std[:, column] ** 2), prior_std**2 * torch.eye(2, dtype=torch.float64))
        q, p = (scale**2 * basis.T @ up @ c @ up.T @ basis for c in covariances)
        shift = scale * basis.T @ up @ mean[:, column]
        inverse = torch.linalg.inv(p)
        gap = (inverse @ q).trace() + shift @ inverse @ shift - 2 + torch.logdet(p) - torch.logdet(q)
        total += 0.5 * gap.item()
    assert posterior.kl(prior_std).item() == pytest.approx(total, rel=1e-9)


def test_bound_of_a_linear_gaussian_model_has_its_optimum_where_theory_says() -> None:
    """1 / Omega_ij^2 = 1 / sigma_p^2 + s^2 (B^T B)_ii sum_n x_nj^2 / tau^2, found by descent in G."""
    generator = torch.Generator().manual_seed(3)
    x, up = (torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in ((6, 3), (4, 2)))
    scale, tau, prior_std = 2.0, 0.5, 0.2
    weight = scale**2 * (up.T @ up).diagonal()[:, None] * x.square().sum(0) / tau**2
    root = torch.full((2, 3), 0.2, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([root], max_iter=500, tolerance_grad=1e-12, line_search_fn="strong_wolfe")

    def bound() -> torch.Tensor:
        optimizer.zero_grad()
        # the likelihood's part that depends on Omega: E |s B (Omega * e) x_n|^2 / (2 tau^2), summed over n
        loss = (weight * root**4).sum() / 2 + normal_kl(torch.zeros_like(root), root.square(), prior_std).sum()
        loss.backward()
        return loss

    optimizer.step(bound)
    torch.testing.assert_close(root.detach() ** 4, 1 / (1 / prior_std**2 + weight), rtol=1e-6, atol=0)


def test_samples_have_the_moments_and_points_stay() -> None:
    posterior = mean_field()
    draws = posterior.sample(40_000, torch.Generator().manual_seed(1))
    error = posterior.std()[A] / math.sqrt(40_000)
    assert ((draws[A].mean(0) - posterior.mean()[A]).abs() < 4.5 * error).all()
    torch.testing.assert_close(draws[A].std(0), posterior.std()[A], rtol=0.02, atol=0)
    assert (draws[B] == posterior.mean()[B]).all()
    few = posterior.sample(3, torch.Generator().manual_seed(1))
    assert torch.equal(few[A], draws[A][:3])


def test_log_density_is_torchs() -> None:
    posterior = mean_field()
    value = {**posterior.mean(), A: torch.randn(2, 3)}
    expected = Normal(posterior.mean()[A].double(), posterior.std()[A].double()).log_prob(value[A].double()).sum()
    torch.testing.assert_close(posterior.log_prob(value), expected)
    assert posterior.log_prob({**value, B: value[B] + 1}) == -math.inf
    with pytest.raises(UsageError, match="no density"):
        MeanField(posterior.mean(), {A: torch.zeros(2, 3)}).log_prob(value)


def test_covariance_of_logits_is_that_of_samples() -> None:
    posterior = mean_field()
    jacobian = {A: torch.randn(5, 2, 2, 3), B: torch.randn(5, 2, 4, 2)}
    noise = posterior.sample(40_000, torch.Generator().manual_seed(2))[A] - posterior.mean()[A]
    logits = torch.einsum("bcij,sij->bsc", jacobian[A], noise)
    sampled = torch.stack([torch.cov(own.T) for own in logits])
    torch.testing.assert_close(posterior.logit_covariance(jacobian), sampled, atol=0.05, rtol=0.05)


def test_comes_back_from_disk_bit_for_bit(tmp_path: Path) -> None:
    posterior = mean_field()
    save_posterior(posterior, tmp_path / "posterior", {"peft_type": "LORA"}, "base")
    again = load_posterior(tmp_path / "posterior", "base")
    for kind in ("mean", "std"):
        for name, value in getattr(posterior, kind)().items():
            assert torch.equal(getattr(again, kind)()[name], value)
    draws = [p.sample(2, torch.Generator().manual_seed(0)) for p in (posterior, again)]
    assert torch.equal(draws[0][A], draws[1][A])


@pytest.mark.parametrize("std", [{A: torch.zeros(2, 2)}, {"other": torch.zeros(1)}, {A: torch.full((2, 3), -1.0)}])
def test_bad_standard_deviations(std: dict) -> None:
    with pytest.raises(UsageError):
        MeanField(mean_field().mean(), std)
