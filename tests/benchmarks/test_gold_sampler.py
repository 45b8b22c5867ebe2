"""The sampler of the gold posterior against closed forms, against a library, and against itself from elsewhere."""

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
FEATURES = torch.tensor([-1.5, -0.7, 0.2, 0.4, 1.1, 1.9, 2.4], dtype=torch.float64)
LABELS = torch.tensor([0.0, 1.0, 0.0, 1.0, 1.0, 1.0, 1.0], dtype=torch.float64)
QUESTION = 0.8  # what is predicted for


@pytest.fixture(autouse=True)
def path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))


def logistic(weight: Tensor) -> Tensor:
    """Log density of one weight ``[K, 1]`` under logistic regression on ``FEATURES`` with a standard normal prior."""
    logits = weight * FEATURES
    return (
        -torch.nn.functional.binary_cross_entropy_with_logits(logits, LABELS.expand_as(logits), reduction="none").sum(
            -1
        )
        - weight.square().sum(-1) / 2
    )


def quadrature(function: Callable[[Tensor], Tensor]) -> float:
    """The posterior's mean of ``function``."""
    grid = torch.linspace(-12, 12, 2001, dtype=torch.float64)
    weights = (logistic(grid[:, None]) - logistic(grid[:, None]).max()).exp()
    return float((weights * function(grid)).sum() / weights.sum())


def error(draws: Tensor) -> float:
    """Monte Carlo standard error of the mean of ``[K, N]``, from the means of the chains' eighths."""
    parts = draws.unflatten(1, (8, -1)).mean(-1).flatten()
    return float(parts.std() / math.sqrt(len(parts)))


def normal_start(chains: int, size: int, seed: int = 0) -> tuple[Tensor, torch.Generator]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(chains, size, generator=generator, dtype=torch.float64), generator


def test_one_weight_of_logistic_regression_is_what_quadrature_says() -> None:
    from gold import hmc

    start, generator = normal_start(50, 1)
    draws = hmc.sample(logistic, start, 80, 60, generator).draws[..., 0]
    mean = quadrature(lambda w: w)
    for function in (lambda w: w, lambda w: (w - mean) ** 2, lambda w: torch.sigmoid(QUESTION * w)):
        found = function(draws)
        assert abs(float(found.mean()) - quadrature(function)) < 3 * error(found)


def test_a_prior_alone_has_its_moments_and_uniform_ranks() -> None:
    from gold import hmc
    from scipy.stats import kstest

    start, generator = normal_start(200, 3, seed=1)
    far = start * 3 + 2
    draws = hmc.sample(lambda z: -z.square().sum(-1) / 2, far, 16, 40, generator).draws
    for found, expected in ((draws, 0.0), (draws.square(), 1.0)):
        for one in found.unbind(-1):
            assert abs(float(one.mean()) - expected) < 3.5 * error(one)
    ranks = torch.special.ndtr(draws[:, -1]).flatten()
    assert kstest(ranks.numpy(), "uniform").pvalue > 0.01


def test_steps_that_are_too_coarse_are_mended_by_the_metropolis_step() -> None:
    """Without it, a step of 1.6 would leave a standard normal with a variance of 1 / (1 - 1.6^2 / 4) = 2.8."""
    from gold import hmc

    start, generator = normal_start(200, 1, seed=2)
    chains = hmc.sample(lambda z: -z.square().sum(-1) / 2, start, 64, 0, generator, step_size=1.6)
    assert chains.step_size == 1.6
    assert abs(float(chains.draws.square().mean()) - 1) < 3 * error(chains.draws[..., 0].square())
    assert float(chains.acceptance.mean()) < 0.95


def test_the_step_size_reaches_the_acceptance_it_is_meant_for() -> None:
    from gold import hmc

    scales = torch.tensor([1.0, 0.3, 0.1], dtype=torch.float64)
    start, generator = normal_start(32, 3, seed=3)
    density = lambda z: -(z / scales).square().sum(-1) / 2  # noqa: E731
    chains = hmc.sample(density, start * scales, 20, 60, generator, step_size=1.0)
    assert 0.7 < float(chains.acceptance.mean()) < 0.92


def test_chains_from_elsewhere_agree() -> None:
    from gold import hmc

    start, generator = normal_start(40, 1, seed=4)
    start[:20] += 8
    draws = hmc.sample(logistic, start, 80, 60, generator).draws[..., 0]
    far, near = draws[:20], draws[20:]
    assert abs(float(far.mean() - near.mean())) < 3 * math.hypot(error(far), error(near))


def test_a_chain_that_starts_where_steps_must_be_small_is_not_left_behind() -> None:
    """Curvature grows outwards, and one of eight chains starts far out, where a step that suits the others fails."""
    from gold import hmc

    start, generator = normal_start(8, 2, seed=6)
    start[0] = 6.0
    density = lambda z: -(z.square().sum(-1) + z.square().sum(-1) ** 3 / 4) / 2  # noqa: E731
    chains = hmc.sample(density, start, 40, 50, generator)
    assert chains.acceptance.min() > 0.5
    assert chains.draws[0].abs().max() < 4


def test_a_start_outside_of_the_density_is_refused() -> None:
    from gold import hmc

    generator = torch.Generator().manual_seed(0)
    with pytest.raises(ValueError, match="not positive"):
        hmc.sample(lambda z: z[:, 0].log(), -torch.ones(2, 1, dtype=torch.float64), 1, 1, generator)


def test_it_draws_what_pyros_nuts_draws() -> None:
    """Two weights, correlated: means and second moments to 3.5 errors of both."""
    mcmc = pytest.importorskip("pyro.infer.mcmc")
    import pyro
    from gold import hmc

    features = torch.stack([FEATURES, torch.cos(3 * FEATURES) + FEATURES], -1)

    def density(z: Tensor) -> Tensor:
        logits = z @ features.T
        loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, LABELS.expand_as(logits), reduction="none")
        return -loss.sum(-1) - z.square().sum(-1) / 2

    start, generator = normal_start(50, 2, seed=5)
    ours = hmc.sample(density, start, 80, 60, generator).draws
    pyro.set_rng_seed(0)
    kernel = mcmc.NUTS(potential_fn=lambda values: -density(values["z"][None])[0], max_tree_depth=4)
    run = mcmc.MCMC(kernel, 240, 60, initial_params={"z": torch.zeros(2, dtype=torch.float64)}, disable_progbar=True)
    run.run()
    theirs = run.get_samples()["z"][None]
    for function in (lambda z: z[..., 0], lambda z: z[..., 1], lambda z: z[..., 0] * z[..., 1]):
        a, b = function(ours), function(theirs)
        assert abs(float(a.mean() - b.mean())) < 3.5 * math.hypot(error(a), error(b))
