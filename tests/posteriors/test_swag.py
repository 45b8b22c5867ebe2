"""SWAG against closed forms: moments, sampler, density, and what is refused."""

import math

import pytest
import torch
from torch import Tensor

from bayeslora.errors import RunError, UsageError
from bayeslora.posteriors.state import load_posterior, save_posterior
from bayeslora.posteriors.swag import PRESETS, Layout, Moments, SWAGPosterior

SHAPES = {"a.weight": (2, 2), "b.bias": (3,), "scalar": ()}


def snapshots(n: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    return [{k: torch.randn(s, generator=generator).to(dtype) for k, s in SHAPES.items()} for _ in range(n)]


def collected(n: int, rank: int = 3, seed: int = 0) -> Moments:
    moments = Moments(Layout(SHAPES), rank)
    for snapshot in snapshots(n, seed):
        moments.update(snapshot)
    return moments


def swag(n: int = 7, rank: int = 3, mode: str = "full", scale: float = 0.5, divisor: str = "kmax") -> SWAGPosterior:
    return collected(n, rank).posterior(mode, scale, divisor)


def flat(posterior: SWAGPosterior) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, variance and deviations of the state."""
    return posterior._mean, posterior._variance, posterior._deviations


def covariance(posterior: SWAGPosterior) -> Tensor:
    """The dense covariance from the published formula."""
    _, variance, rows = (t.double() for t in flat(posterior))
    return posterior.scale * (variance.diag() + rows.T @ rows / (posterior.rank - 1))


# --- moments ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 2, 3, 4, 9])  # below K, K, K + 1, 2 K + 3
def test_moments_are_those_of_the_stack(n: int) -> None:
    moments = collected(n)
    weights = torch.stack([moments.layout.flatten(s) for s in snapshots(n)])
    torch.testing.assert_close(moments.mean, weights.mean(0), atol=1e-6, rtol=0)
    torch.testing.assert_close(moments.variance, weights.var(0, unbiased=False), atol=1e-6, rtol=1e-5)
    running = weights.cumsum(0) / torch.arange(1, n + 1)[:, None]
    torch.testing.assert_close(moments.deviations, (weights - running)[-3:], atol=1e-6, rtol=0)
    assert n > 3 or (moments.deviations[0] == 0).all()
    assert moments.count == n


def test_mean_is_that_of_torchs_averaged_model() -> None:
    from torch.optim.swa_utils import AveragedModel

    torch.manual_seed(0)
    model = torch.nn.Linear(5, 3)
    averaged, moments = AveragedModel(model), Moments(Layout.of(dict(model.named_parameters())), 2)
    for _ in range(9):
        with torch.no_grad():
            model.weight.normal_()
        averaged.update_parameters(model)
        moments.update(dict(model.named_parameters()))
    wanted = Layout.of(dict(model.named_parameters())).flatten(dict(averaged.module.named_parameters()))
    torch.testing.assert_close(moments.mean, wanted, atol=1e-6, rtol=0)


def test_small_variances_of_bfloat16_weights_survive() -> None:
    generator = torch.Generator().manual_seed(0)
    weights = (0.02 + 1e-4 * torch.randn(40, 500, generator=generator)).bfloat16()
    moments = Moments(Layout({"w": (500,)}), 2)
    for row in weights:
        moments.update({"w": row})
    wanted = weights.double().std(0, unbiased=False)
    torch.testing.assert_close(moments.variance.sqrt().double(), wanted, rtol=1e-3, atol=1e-9)
    mean, square = torch.zeros(500).bfloat16(), torch.zeros(500).bfloat16()
    for n, row in enumerate(weights):
        mean, square = (n * mean + row) / (n + 1), (n * square + row**2) / (n + 1)
    naive = (square - mean**2).clamp(min=1e-30).sqrt().double()
    assert (naive / wanted - 1).abs().median() > 0.5  # the guard against going back to E[w^2] - E[w]^2


def test_state_is_two_plus_k_vectors_and_resumes_bit_for_bit() -> None:
    moments = collected(4, rank=5)
    assert moments.nbytes == (2 + 5) * 8 * 4
    again = Moments.from_state_dict(moments.state_dict())
    for snapshot in snapshots(3, seed=9):
        moments.update(snapshot)
        again.update(snapshot)
    assert again.count == 7
    for name in ("mean", "m2", "ring"):
        assert torch.equal(getattr(moments, name), getattr(again, name))


def test_a_snapshot_that_does_not_fit_changes_nothing() -> None:
    moments = collected(3)
    before = moments.mean.clone()
    good = snapshots(1)[0]
    with pytest.raises(UsageError, match=r"lacks parameter scalar"):
        moments.update({k: v for k, v in good.items() if k != "scalar"})
    with pytest.raises(UsageError, match=r"b.bias has shape \[4\]"):
        moments.update({**good, "b.bias": torch.zeros(4)})
    with pytest.raises(RunError, match=r"snapshot 4 of a.weight is not finite"):
        moments.update({**good, "a.weight": torch.full((2, 2), torch.nan)})
    assert torch.equal(moments.mean, before)
    assert moments.count == 3


@pytest.mark.parametrize("n", [2, 3, 8])
def test_checkpoints_come_back_out_of_the_deviations(n: int) -> None:
    members = collected(n).checkpoints().components
    wanted = snapshots(n)[-3:]
    assert len(members) == len(wanted)
    for member, snapshot in zip(members, wanted, strict=True):
        for name, value in member.mean().items():
            torch.testing.assert_close(value, snapshot[name], atol=2e-6, rtol=0)


# --- sampler ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [0.5, 1.0])
def test_injected_noise_moves_as_the_formula_says(scale: float) -> None:
    posterior = swag(scale=scale)
    mean, variance, rows = flat(posterior)
    zero = torch.zeros(8)
    for k in range(3):
        moved = posterior.at(zero, torch.eye(3)[k]) - mean
        torch.testing.assert_close(moved, math.sqrt(scale / 2) * rows[k], atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(
        posterior.at(torch.ones(8), torch.zeros(3)) - mean, (scale * variance).sqrt(), atol=1e-6, rtol=1e-5
    )


def test_divisor_counts_rows_or_their_maximum() -> None:
    mean, _, rows = flat(swag(n=3, rank=5))
    for divisor, count in (("kmax", 4), ("rows", 2)):
        moved = swag(n=3, rank=5, divisor=divisor).at(torch.zeros(8), torch.ones(3)) - mean
        torch.testing.assert_close(moved, math.sqrt(0.5 / count) * rows.sum(0), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(("mode", "scale"), [("full", 0.0), ("swa", 1.0)])
def test_without_scale_every_sample_is_the_mean(mode: str, scale: float) -> None:
    posterior = swag(mode=mode, scale=scale)
    for name, draws in posterior.sample(3, torch.Generator().manual_seed(0)).items():
        assert all(torch.equal(draw, posterior.mean()[name]) for draw in draws)


def test_diagonal_mode_ignores_the_deviations() -> None:
    full, diag = swag(mode="full"), swag(mode="diag")
    assert len(flat(diag)[2]) == 0
    z1 = torch.randn(8, generator=torch.Generator().manual_seed(1))
    assert torch.equal(full.at(z1, torch.zeros(3)), diag.at(z1, torch.zeros(0)))


def test_sampling_leaves_the_global_generator_alone_and_extends() -> None:
    posterior = swag()
    state = torch.get_rng_state()
    few, many = (posterior.sample(n, torch.Generator().manual_seed(4)) for n in (2, 5))
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(few[name], many[name][:2]) for name in few)


def empirical(posterior: SWAGPosterior, n: int = 40_000, seed: int = 0) -> tuple[Tensor, Tensor]:
    draws = posterior.layout.flatten(posterior.sample(n, torch.Generator().manual_seed(seed))).double()
    return draws, torch.cov(draws.T)


def test_empirical_mean_and_covariance() -> None:
    posterior = swag()
    wanted = covariance(posterior)
    draws, found = empirical(posterior)
    n = len(draws)
    spread = ((wanted.diag()[:, None] * wanted.diag() + wanted**2) / (n - 1)).sqrt()
    assert ((found - wanted) / spread).abs().max() < 4.5
    z = (draws.mean(0) - posterior._mean.double()) / (wanted.diag() / n).sqrt()
    assert z.abs().max() < 4.5
    rows = posterior._deviations.double()
    cross = 0.5 * (rows.T @ rows / 2)[:4, 4:]  # parameters of different tensors: only the shared z2 correlates them
    assert cross.abs().max() > 10 * spread[:4, 4:].max()
    assert ((found[:4, 4:] - cross) / spread[:4, 4:]).abs().max() < 4.5
    _, independent = empirical(swag(mode="diag"))
    diagonal = posterior.scale * posterior._variance.double()
    off = (independent - diagonal.diag()) / ((diagonal[:, None] * diagonal) / (n - 1)).sqrt()
    assert off.fill_diagonal_(0).abs().max() < 4.5


def test_mahalanobis_distances_are_chi_square_and_scale_is_linear() -> None:
    from scipy.stats import chi2, kstest

    posterior = swag()
    draws, found = empirical(posterior, n=4000)
    centred = draws - posterior._mean.double()
    squares = (centred @ covariance(posterior).inverse() * centred).sum(-1)
    assert kstest(squares.numpy(), chi2(8).cdf).pvalue > 1e-3
    _, twice = empirical(swag(scale=1.0), n=4000)
    assert abs(twice.trace() / found.trace() - 2) < 0.02


# --- density and linearised prediction -------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "mode", "divisor"), [(7, "full", "kmax"), (2, "full", "rows"), (7, "diag", "kmax")])
def test_density_is_that_of_torchs_low_rank_normal(n: int, mode: str, divisor: str) -> None:
    posterior = swag(n=n, mode=mode, divisor=divisor)
    mean, variance, rows = (t.double() for t in flat(posterior))
    count = 2 if divisor == "kmax" else len(rows) - 1
    factor = math.sqrt(0.5 / count) * rows.T if mode == "full" else torch.zeros(8, 1).double()
    law = torch.distributions.LowRankMultivariateNormal(mean, factor, 0.5 * variance)
    value = snapshots(1, seed=5)[0]
    torch.testing.assert_close(posterior.log_prob(value), law.log_prob(posterior.layout.flatten(value).double()))
    marginal = posterior.layout.flatten(posterior.variance()).double()
    torch.testing.assert_close(marginal, law.covariance_matrix.diagonal(), rtol=1e-5, atol=1e-7)


def test_there_is_no_density_without_variance() -> None:
    with pytest.raises(UsageError, match="jitter"):
        swag(scale=0.0).log_prob(snapshots(1)[0])
    assert swag(scale=0.0).log_prob(snapshots(1)[0], jitter=1.0).isfinite()


@pytest.mark.parametrize("mode", ["full", "diag", "swa"])
def test_logit_covariance_is_j_sigma_j(mode: str) -> None:
    posterior = swag(mode=mode)
    generator = torch.Generator().manual_seed(3)
    jacobian = {k: torch.randn(5, 2, *s, generator=generator, dtype=torch.float64) for k, s in SHAPES.items()}
    flat_jacobian = posterior.layout.flatten({k: v.float() for k, v in jacobian.items()}).double()
    sigma = {"full": covariance(posterior), "diag": (0.5 * posterior._variance.double()).diag()}
    wanted = flat_jacobian @ sigma.get(mode, torch.zeros(8, 8).double()) @ flat_jacobian.mT
    torch.testing.assert_close(posterior.logit_covariance(jacobian), wanted, rtol=1e-5, atol=1e-6)


def test_quadratic_loss_with_noisy_gradients_has_the_stationary_variance() -> None:
    generator = torch.Generator().manual_seed(0)
    curvature, noise, rate = torch.tensor([0.5, 1.0, 2.0]), torch.tensor([1.0, 0.5, 2.0]), 0.1
    weight, moments = torch.zeros(3), Moments(Layout({"w": (3,)}), 2)
    for step in range(60_000):
        weight = weight - rate * (curvature * weight + noise * torch.randn(3, generator=generator))
        if step >= 1000 and step % 10 == 0:
            moments.update({"w": weight})
    wanted = rate * noise**2 / (curvature * (2 - rate * curvature))
    torch.testing.assert_close(moments.variance, wanted, rtol=0.1, atol=0)


# --- files and bad input ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["full", "diag", "swa"])
@pytest.mark.parametrize("config", [None, {"peft_type": "LORA"}])
def test_a_posterior_comes_back_from_disk_and_draws_the_same(tmp_path, mode: str, config: dict | None) -> None:
    posterior = swag(mode=mode)
    save_posterior(posterior, tmp_path / "posterior", config)
    assert (tmp_path / "posterior" / "adapter_model.safetensors").exists() == (config is not None)
    back = load_posterior(tmp_path / "posterior")
    draws = [p.sample(2, torch.Generator().manual_seed(0)) for p in (posterior, back)]
    assert all(torch.equal(draws[0][name], draws[1][name]) for name in SHAPES)


def test_presets_are_as_published() -> None:
    assert (PRESETS["maddox"].scale, PRESETS["maddox"].diag_scale, PRESETS["maddox"].rank) == (0.5, 1.0, 20)
    assert (PRESETS["release"].scale, PRESETS["release"].rank, PRESETS["release"].samples) == (1.0, 5, 15)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n": 1}, "1 snapshots, mode full needs 2"),
        ({"rank": 1}, "rank K is 1"),
        ({"scale": -0.1}, "scale is -0.1"),
        ({"scale": math.nan}, "scale is nan"),
        ({"mode": "block"}, "mode is 'block'"),
        ({"divisor": "n"}, "divisor is 'n'"),
    ],
)
def test_what_makes_no_gaussian_is_refused(options: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message) as refusal:
        swag(**options)
    assert "\n" not in str(refusal.value)


def test_the_mean_of_one_snapshot_is_allowed() -> None:
    assert torch.equal(swag(n=1, mode="swa").mean()["b.bias"], snapshots(1)[0]["b.bias"])
