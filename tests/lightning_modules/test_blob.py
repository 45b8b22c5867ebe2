"""BLoB and Bayes by Backprop through the real Trainer."""

import math
from pathlib import Path

import lightning as L
import pytest
import torch

from bayeslora import SWAG, Backbone, LoRA, LoRAModule, UsageError
from bayeslora.callbacks.run_folder import RunFolder
from bayeslora.datamodules import JSONLDataModule
from bayeslora.lightning_modules.blob import BLoBModule
from bayeslora.models.blob import draw_perturbations
from bayeslora.posteriors.state import load_posterior
from tests.helpers.runs import assert_equal, trainer


def batches(data: Path) -> JSONLDataModule:
    return JSONLDataModule(path=str(data), labels=40, batch_size=8, seed=1)


def module(**arguments: object) -> BLoBModule:
    return BLoBModule(
        **{"backbone": Backbone("embedded"), "lora": LoRA(), "learning_rate": 1e-3, "seed": 1, **arguments}
    )


def fitted(root: Path, data: Path, **arguments: object) -> tuple[BLoBModule, L.Trainer]:
    own, run = module(**arguments), trainer(root, callbacks=[RunFolder()])
    run.fit(own, datamodule=batches(data))
    return own, run


def fresh(**arguments: object) -> BLoBModule:
    own = module(**arguments)
    own.configure_model()
    return own


# --- the posterior ---------------------------------------------------------------------------------------------------


def test_starts_as_released() -> None:
    own = fresh()
    for name, std in own.std().items():
        assert ".lora_A." in name
        assert 0.00125 <= std.min() < 0.00130
        assert 0.00245 < std.max() <= 0.0025
    plain = LoRAModule(Backbone("embedded"), LoRA(), seed=1)
    plain.configure_model()
    assert_equal(dict(own.weight_sets()[0]), dict(plain.trainable()))  # A and B start as without a posterior


def test_counts_one_standard_deviation_for_every_entry_of_a_factor() -> None:
    plain = LoRAModule(Backbone("embedded"), LoRA(), seed=1)
    plain.configure_model()
    size = {k: sum(p.numel() for n, p in plain.trainable().items() if f".lora_{k}." in n) for k in "AB"}
    for factors, extra in (("A", size["A"]), ("AB", size["A"] + size["B"])):
        total = sum(p.numel() for p in fresh(factors=factors).trainable().values())
        assert total == size["A"] + size["B"] + extra


def test_divergence_is_the_posteriors() -> None:
    for factors in ("A", "AB"):
        own = fresh(factors=factors, prior_std=0.1)
        torch.testing.assert_close(own.kl().double(), own.posterior().kl(0.1), rtol=1e-5, atol=0)


def test_perturbations_are_a_function_of_the_draw_with_the_posteriors_spread() -> None:
    std = {"a": torch.tensor([[0.1, 0.2]]), "b": torch.tensor([[0.3]])}
    many = draw_perturbations(std, torch.arange(4000), seed=3)
    again = draw_perturbations(std, torch.tensor([7]), seed=3)
    for name, value in std.items():
        assert torch.equal(many.perturbations[name][7], again.perturbations[name][0])
        torch.testing.assert_close(many.perturbations[name].std(0), value, rtol=0.05, atol=0)
    flat = torch.cat([v.flatten(1) for v in many.perturbations.values()], 1)
    assert (torch.corrcoef(flat.T) - torch.eye(3)).abs().max() < 0.08


# --- limits ----------------------------------------------------------------------------------------------------------


def test_before_training_all_samples_are_the_base(data: Path, tmp_path: Path) -> None:
    """B is zero: noise on A does not reach the output."""
    run = trainer(tmp_path)
    found = {}
    for predict in ("weights", "flipout"):
        predictions = run.predict(module(predict=predict, samples=3), datamodule=batches(data))
        found[predict] = torch.cat([p.log_probs for p in predictions], 1)
        assert torch.equal(found[predict], found[predict][:1].expand_as(found[predict]))
    mean = torch.cat([p.log_probs for p in run.predict(module(samples=0), datamodule=batches(data))], 1)
    torch.testing.assert_close(found["weights"][:1], mean, atol=1e-5, rtol=1e-5)


def test_without_noise_and_divergence_it_is_maximum_likelihood(data: Path, tmp_path: Path) -> None:
    own, _ = fitted(tmp_path / "a", data, kl_weight=0.0, init_std=1e-24)
    plain = LoRAModule(Backbone("embedded"), LoRA(), learning_rate=1e-3, seed=1)
    trainer(tmp_path / "b").fit(plain, datamodule=batches(data))
    for name, value in plain.trainable().items():
        torch.testing.assert_close(own.trainable()[name], value, atol=1e-6, rtol=1e-4)


# --- training --------------------------------------------------------------------------------------------------------


def test_loss_is_the_likelihood_plus_the_cycles_share(data: Path, tmp_path: Path) -> None:
    own, run = fitted(tmp_path, data, kl_weight=0.5)
    batch = next(iter(run.datamodule.train_dataloader()))
    assert (run.num_training_batches, own.training_size) == (4, 32)
    for place in range(4):
        own._micro_step = 8 + place
        torch.testing.assert_close(own.loss(batch), own.nll(batch, own.training_noise()))
        extra = own.penalty()
        share = 0.5 * 4 / 32 * 2 ** (place + 1) / (2**5 - 1)
        torch.testing.assert_close(extra, share * own.kl(), rtol=1e-3, atol=1e-4)


def test_the_release_has_a_cycle_of_its_own(data: Path, tmp_path: Path) -> None:
    own, _ = fitted(tmp_path, data, kl_schedule="release")
    assert own.kl_schedule.cycle == int(100 * 32 ** (math.pi / 8) / 8)
    assert own.kl_schedule.total == 1


def test_two_optimisers_step_as_published_and_count_as_one(data: Path, tmp_path: Path) -> None:
    own = module(optimisers="two", kl_schedule="constant", warmup=0.0, std_learning_rate=0.003)
    steps: list[tuple[dict, dict, torch.Tensor]] = []

    class Watch(L.Callback):
        def on_train_batch_start(self, run: L.Trainer, pl_module: BLoBModule, batch: object, batch_idx: int) -> None:
            self.before = {n: p.detach().clone() for n, p in pl_module.trainable().items()}
            nll = pl_module.nll(batch, pl_module.training_noise())
            names = list(pl_module.trainable())
            self.nll = dict(zip(names, torch.autograd.grad(nll, list(pl_module.trainable().values())), strict=True))

        def on_train_batch_end(self, run: L.Trainer, pl_module: BLoBModule, *_: object) -> None:
            steps.append((self.before, {n: p.detach().clone() for n, p in pl_module.trainable().items()}, self.nll))

    run = trainer(tmp_path, callbacks=[Watch()], max_epochs=2, max_steps=6)
    run.fit(own, datamodule=batches(data))
    assert run.global_step == len(steps) == own._micro_step == 6
    before, after, nll = steps[0]
    for name in before:
        if name.endswith("std_root"):  # SGD at its peak rate, down the likelihood and the KL's share of 1 / N
            root = before[name]
            std = root.square()
            by_kl = (std / 0.2**2 - 1 / std) * 2 * root / 32
            torch.testing.assert_close(after[name], root - 0.003 * (nll[name] + by_kl), rtol=1e-4, atol=1e-7)
        elif ".lora_B." in name:  # AdamW's first step: the rate times the gradient's sign
            moved = nll[name].abs() > 1e-4
            step = 1e-3 * nll[name].sign()
            torch.testing.assert_close((before[name] - after[name])[moved], step[moved], rtol=0.02, atol=0)
        else:  # no gradient of the likelihood at B = 0: SGD down the KL alone
            torch.testing.assert_close(after[name], before[name] * (1 - 0.003 / 0.2**2 / 32), rtol=1e-4, atol=1e-6)
    rates = [optimizer.param_groups[0]["lr"] for optimizer in run.optimizers]
    assert rates == [0.0, 0.0]  # both have decayed with the run


# --- prediction ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[BLoBModule, L.Trainer]:
    root = tmp_path_factory.mktemp("trained")
    own, run = module(init_std=0.2, samples=4), trainer(root, callbacks=[RunFolder()], max_epochs=6)
    run.fit(own, datamodule=batches(data))
    return own, run


def test_mean_is_deterministic_and_samples_are_reproducible(trained: tuple[BLoBModule, L.Trainer], data: Path) -> None:
    own, run = trained

    def predicted(**changes: object) -> torch.Tensor:
        previous = {key: getattr(own, key) for key in changes}
        vars(own).update(changes)
        found = torch.cat([p.log_probs for p in run.predict(own, datamodule=batches(data))], 1)
        vars(own).update(previous)
        return found

    mean = predicted(samples=0)
    assert torch.equal(mean, predicted(samples=0))
    for predict in ("weights", "flipout"):
        draws = predicted(predict=predict)
        assert torch.equal(draws, predicted(predict=predict))
        assert (draws.std(0) > 1e-4).all()
        assert not torch.equal(draws, predicted(predict=predict, seed=2))
    assert predicted(predict="linearised").shape[1:] == mean.shape[1:]


def test_a_spread_on_other_factors_is_refused(trained: tuple[BLoBModule, L.Trainer]) -> None:
    folder = Path(trained[1].default_root_dir) / "posterior"
    with pytest.raises(UsageError, match="give factors"):
        fresh(backbone=Backbone("embedded", adapter=str(folder)), factors="AB")


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"factors": "B"}, "factors is 'B'; allowed: A, AB"),
        ({"kl_schedule": "late"}, "constant, cyclic, release"),
        ({"optimisers": "three"}, "one, two"),
        ({"predict": "mean"}, "weights, flipout, linearised"),
        ({"prior_std": 0.0}, "prior_std is 0"),
        ({"init_std": -1.0}, "init_std is -1"),
        ({"samples": -1}, "samples is -1"),
    ],
)
def test_bad_arguments(arguments: dict, match: str) -> None:
    with pytest.raises(UsageError, match=match):
        BLoBModule(**arguments)


def test_names() -> None:
    names = [BLoBModule(**a).method for a in ({}, {"samples": 0}, {"factors": "AB"}, {"predict": "linearised"})]
    assert names == ["blob_10", "blob_mean", "bbb_10", "blob_linearised"]


def test_swag_follows_the_means(data: Path, tmp_path: Path) -> None:
    swag = SWAG(start=0, samples=2)
    own, run = module(), trainer(tmp_path, max_epochs=2, callbacks=[swag, RunFolder()])
    run.fit(own, datamodule=batches(data))
    assert swag.posterior.mean().keys() == own.weight_sets()[0].keys()
    run.test(own, datamodule=batches(data), verbose=False)
    assert load_posterior(tmp_path / "posterior").family == "swag"
