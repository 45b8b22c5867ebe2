"""ScalaBL: its law against closed forms, its limits, and the whole way through the real Trainer."""

import doctest
import math
from pathlib import Path

import lightning as L
import pytest
import torch

from bayeslora import SWAG, Backbone, LoRA, LoRAModule, ScalaBLModule, UsageError
from bayeslora.callbacks.run_folder import RunFolder
from bayeslora.datamodules import JSONLDataModule
from bayeslora.lightning_modules import scalabl
from bayeslora.lightning_modules.scalabl import orthogonal_rows
from bayeslora.posteriors.scalabl import ScalaBLPosterior
from bayeslora.posteriors.state import load_posterior, save_posterior
from tests.helpers.runs import assert_equal, trainer

RATE = {"learning_rate": 1e-3, "warmup": 0.0}


def batches(data: Path) -> JSONLDataModule:
    return JSONLDataModule(path=str(data), labels=40, batch_size=8, seed=1)


def module(**arguments: object) -> ScalaBLModule:
    given = {"backbone": Backbone("embedded"), "lora": LoRA(), "optimisation": RATE, "seed": 1, **arguments}
    return ScalaBLModule(**given)


def fresh(**arguments: object) -> ScalaBLModule:
    own = module(**arguments)
    own.configure_model()
    return own


def toy() -> ScalaBLPosterior:
    source = torch.Generator().manual_seed(0)
    mean = {"x.lora_A.weight": torch.randn(3, 5, generator=source), "x.lora_B.weight": torch.ones(4, 3)}
    scales = {"x.lora_A.weight": torch.tensor([0.5, 1.0, 2.0])}
    return ScalaBLPosterior(mean, scales, {"x.lora_A.weight": torch.tensor([0.1, 0.2, 0.0])})


# --- the law ---------------------------------------------------------------------------------------------------------


def test_a_draw_is_diag_s_v_with_normal_scales() -> None:
    posterior, name = toy(), "x.lora_A.weight"
    draws = posterior.sample(20_000, torch.Generator().manual_seed(1))
    v = posterior.mean()[name] / posterior.scale_mean()[name][:, None]
    scales = (draws[name] * v).sum(-1) / v.square().sum(-1)  # of every row, by projection
    torch.testing.assert_close(draws[name], scales[:, :, None] * v, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(scales.mean(0), posterior.scale_mean()[name], atol=0.005, rtol=0)
    torch.testing.assert_close(scales.std(0), posterior.scale_std()[name], atol=1e-5, rtol=0.02)
    assert torch.corrcoef(scales[:, :2].T)[0, 1].abs() < 0.03
    assert torch.equal(draws["x.lora_B.weight"], posterior.mean()["x.lora_B.weight"].expand(20_000, 4, 3))


def test_divergence_is_torchs_from_the_posterior_to_the_prior() -> None:
    own = fresh(prior_std=0.7)
    posterior = own.posterior()
    expected = torch.zeros((), dtype=torch.float64)
    for name, mean in posterior.scale_mean().items():
        law = torch.distributions.Normal(mean.double(), posterior.scale_std()[name].double())
        prior = torch.distributions.Normal(torch.zeros_like(law.mean), 0.7)
        expected += torch.distributions.kl_divergence(law, prior).sum()
    torch.testing.assert_close(posterior.kl(0.7), expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(own.kl().double(), expected, rtol=1e-5, atol=0)


def test_the_best_scale_of_a_prior_leaves_variational_dropouts_divergence() -> None:
    """V can take any scale that s gives up: what remains is 1/2 log(1 + 1/t^2), t = sigma / mu, whatever the prior."""
    for prior, t in ((1.0, 0.1), (0.3, 2.0)):
        divergences = []
        for mean in prior * torch.linspace(0.05, 1.5, 500):
            one = ScalaBLPosterior({"w": torch.ones(1, 2)}, {"w": mean[None]}, {"w": t * mean[None]})
            divergences.append(one.kl(prior).item())
        assert min(divergences) == pytest.approx(0.5 * math.log(1 + 1 / t**2), abs=1e-4)


def test_logit_covariance_is_that_of_linear_logits_under_draws() -> None:
    posterior, source = toy(), torch.Generator().manual_seed(3)
    jacobian = {name: torch.randn(2, 3, *value.shape, generator=source) for name, value in posterior.mean().items()}
    draws = posterior.sample(40_000, torch.Generator().manual_seed(4))
    name = "x.lora_A.weight"
    moved = torch.einsum("bcij,sij->sbc", jacobian[name], draws[name] - posterior.mean()[name])
    sampled = torch.stack([torch.cov(moved[:, b].T) for b in range(2)])
    torch.testing.assert_close(posterior.logit_covariance(jacobian), sampled, atol=0.02, rtol=0.03)


@pytest.mark.parametrize("config", [None, {"peft_type": "LORA"}], ids=["alone", "as an adapter"])
def test_posterior_is_kept_bit_for_bit(tmp_path: Path, config: dict | None) -> None:
    posterior = toy()
    save_posterior(posterior, tmp_path / "p", config)
    again = load_posterior(tmp_path / "p")
    assert isinstance(again, ScalaBLPosterior)
    assert_equal(again.state_dict(), posterior.state_dict())
    assert_equal(
        again.sample(3, torch.Generator().manual_seed(0)), posterior.sample(3, torch.Generator().manual_seed(0))
    )


def test_scales_that_do_not_fit_are_refused() -> None:
    mean, two = {"a": torch.ones(2, 3)}, torch.ones(2)
    for means, stds, match in (
        ({"a": two}, {}, "belong to other parameters"),
        ({"b": two}, {"b": two}, "scales of b"),
        ({"a": torch.ones(3)}, {"a": torch.ones(3)}, "one a row"),
        ({"a": -two}, {"a": two}, "means above 0"),
        ({"a": two}, {"a": two * torch.nan}, "standard deviations from 0"),
    ):
        with pytest.raises(UsageError, match=match):
            ScalaBLPosterior(mean, means, stds)


# --- where it starts -------------------------------------------------------------------------------------------------


def test_starts_at_the_singular_values_of_loras_own_start() -> None:
    own, plain = fresh(), LoRAModule(Backbone("embedded"), LoRA(), seed=1)
    plain.configure_model()
    posterior, start = own.posterior(), plain.trainable()
    assert posterior.scale_std().keys() == {name for name in start if ".lora_A." in name}
    for name, std in posterior.scale_std().items():
        ours, theirs, scale = posterior.mean()[name], start[name].detach(), posterior.scale_mean()[name]
        torch.testing.assert_close(scale, torch.linalg.svdvals(theirs), rtol=1e-5, atol=0)
        torch.testing.assert_close(ours @ ours.T, torch.diag(scale.square()), atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(ours.T @ ours, theirs.T @ theirs, atol=1e-6, rtol=1e-4)  # the same row space
        assert 0.05 / 2**0.5 <= std.min() <= std.max() <= 0.05 * (1 + 1e-6)
    total = sum(value.numel() for value in own.trainable().values())
    assert total == sum(value.numel() for value in start.values()) + 2 * 8 * len(posterior.scale_std())


def test_signs_do_not_depend_on_the_decomposition() -> None:
    matrix = torch.randn(4, 9, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(orthogonal_rows(matrix), orthogonal_rows(-matrix))
    torch.testing.assert_close(orthogonal_rows(matrix[[2, 0, 3, 1]]), orthogonal_rows(matrix))


def test_a_rank_that_no_rows_can_be_orthogonal_in_is_refused() -> None:
    with pytest.raises(UsageError, match=r"lora.r is 300, but .* has \d+ inputs"):
        fresh(lora=LoRA(r=300, target_modules=["q_proj"]))


# --- limits ----------------------------------------------------------------------------------------------------------


def test_without_noise_and_divergence_it_is_maximum_likelihood(data: Path, tmp_path: Path) -> None:
    own = module(kl_weight=0.0, init_std=1e-24)
    trainer(tmp_path / "a").fit(own, datamodule=batches(data))
    plain = LoRAModule(Backbone("embedded"), LoRA(), optimisation=RATE, seed=1)
    plain.configure_model()
    start = fresh().weight_sets()[0]
    for name, value in plain.trainable().items():
        value.data.copy_(start[name])
    trainer(tmp_path / "b").fit(plain, datamodule=batches(data))
    for name, value in plain.trainable().items():
        torch.testing.assert_close(own.trainable()[name], value, atol=1e-6, rtol=1e-4)


def test_loss_is_the_likelihood_of_the_draw_plus_the_epochs_share(data: Path, tmp_path: Path) -> None:
    own, run = module(kl_weight=0.5, kl_schedule="constant"), trainer(tmp_path)
    run.fit(own, datamodule=batches(data))
    batch = next(iter(run.datamodule.train_dataloader()))
    own._micro_step = 9
    noise = own.training_noise()
    assert noise.weights.keys() == own.posterior().scale_std().keys()
    torch.testing.assert_close(own.loss(batch), own.nll(batch, noise))
    extra = own.penalty()
    torch.testing.assert_close(
        extra, 0.5 / 32 * own.kl(), rtol=1e-3, atol=1e-4
    )  # 4 batches of 32 questions: w M / N / M


def test_gradients_are_those_of_the_law_written_out() -> None:
    """By hand: B diag(mu + sigma eps) V with V = diag(1/mu) A, mu and sigma as parameters of their own."""
    own = fresh()
    noise = own.training_noise()
    name = next(iter(noise.weights))
    weight = torch.randn(noise.weights[name].shape, generator=torch.Generator().manual_seed(0))
    site = {
        key.rpartition(".")[2]: p for key, p in own.trainable().items() if key.startswith(name.removesuffix("weight"))
    }
    (noise.weights[name] * weight).sum().backward()
    a = site["weight"].detach().clone().requires_grad_()
    log_mean, log_std = (site[key].detach().clone().requires_grad_() for key in ("log_scale_mean", "log_scale_std"))
    with torch.no_grad():
        drawn = noise.weights[name][0]
        eps = ((drawn / a).mean(1) - 1) * log_mean.exp() / log_std.exp()
    v = a / log_mean.exp()[:, None]
    (((log_mean.exp() + log_std.exp() * eps)[:, None] * v) * weight[0]).sum().backward()
    for found, expected in ((site["weight"], a), (site["log_scale_mean"], log_mean), (site["log_scale_std"], log_std)):
        torch.testing.assert_close(found.grad, expected.grad, rtol=1e-3, atol=1e-5)


# --- through the trainer ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[ScalaBLModule, L.Trainer]:
    root = tmp_path_factory.mktemp("trained")
    own = module(init_std=0.2, scale_learning_rate=0.05, samples=4)
    run = trainer(root, callbacks=[RunFolder()], max_epochs=6)
    run.fit(own, datamodule=batches(data))
    return own, run


def test_training_moves_the_law(trained: tuple[ScalaBLModule, L.Trainer]) -> None:
    own, start = trained[0].posterior(), fresh(init_std=0.2).posterior()
    for found, before in ((own.scale_mean(), start.scale_mean()), (own.scale_std(), start.scale_std())):
        assert all((found[name] != before[name]).all() for name in before)


def test_a_finished_run_brings_its_law_back(trained: tuple[ScalaBLModule, L.Trainer]) -> None:
    own, run = trained
    adapter = Backbone("embedded", adapter=str(Path(run.default_root_dir) / "posterior"))
    found, expected = fresh(backbone=adapter, seed=5).posterior(), own.posterior()
    assert_equal(found.mean(), expected.mean())
    for name, std in expected.scale_std().items():
        torch.testing.assert_close(found.scale_mean()[name], expected.scale_mean()[name], rtol=1e-6, atol=0)
        torch.testing.assert_close(found.scale_std()[name], std, rtol=1e-6, atol=0)


def test_a_plain_adapter_is_a_start(data: Path, tmp_path: Path) -> None:
    plain = LoRAModule(Backbone("embedded"), LoRA(), optimisation=RATE, seed=1)
    trainer(tmp_path, callbacks=[RunFolder()]).fit(plain, datamodule=batches(data))
    own = fresh(backbone=Backbone("embedded", adapter=str(tmp_path / "posterior")))
    assert_equal(dict(own.weight_sets()[0]), {name: value.detach() for name, value in plain.trainable().items()})
    for name, scale in own.posterior().scale_mean().items():
        torch.testing.assert_close(scale, plain.trainable()[name].detach().norm(dim=1))


def test_swag_follows_the_mean(data: Path, tmp_path: Path) -> None:
    swag = SWAG(start=0, samples=2)
    own, run = module(), trainer(tmp_path, max_epochs=2, callbacks=[swag, RunFolder()])
    run.fit(own, datamodule=batches(data))
    assert swag.posterior.mean().keys() == own.weight_sets()[0].keys()
    run.test(own, datamodule=batches(data), verbose=False)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"kl_schedule": "late"}, "constant, cyclic, release"),
        ({"predict": "flipout"}, "weights, linearised"),
        ({"prior_std": 0.0}, "prior_std is 0"),
        ({"init_std": -1.0}, "init_std is -1"),
        ({"scale_learning_rate": 0.0}, "scale_learning_rate is 0"),
        ({"kl_weight": -1.0}, "kl_weight is -1"),
        ({"samples": -1}, "samples is -1"),
    ],
)
def test_bad_arguments(arguments: dict, match: str) -> None:
    with pytest.raises(UsageError, match=match):
        ScalaBLModule(**arguments)


def test_names() -> None:
    names = [ScalaBLModule(**a).method for a in ({}, {"samples": 0}, {"predict": "linearised"})]
    assert names == ["scalabl_10", "scalabl_mean", "scalabl_linearised"]


def test_example() -> None:
    assert doctest.testmod(scalabl).attempted > 0
