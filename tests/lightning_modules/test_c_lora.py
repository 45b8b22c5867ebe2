"""C-LoRA through the real Trainer: loss, schedules, optimisers, prediction, and what a run leaves behind."""

import json
from pathlib import Path

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from bayeslora import (
    SWAG,
    Backbone,
    CLoRAModule,
    LoRA,
    LoRAModule,
    SavedPosteriors,
    UsageError,
    load_posterior,
    save_posterior,
)
from bayeslora.callbacks.run_folder import RunFolder
from bayeslora.curvature.jacobian import contrast_jacobian
from bayeslora.datamodules import JSONLDataModule
from bayeslora.lightning_modules.c_lora import RELEASE_FACTOR
from bayeslora.lightning_modules.kl_schedule import cyclic_share, release_cycle
from bayeslora.posteriors.point import Point
from bayeslora.types import Samples
from tests.helpers.ddp_gradients import Gradients
from tests.helpers.runs import assert_equal


def trainer(root: Path, **changes: object) -> L.Trainer:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    return L.Trainer(**{"default_root_dir": root, "accelerator": "cpu", "max_epochs": 1, **quiet, **changes})


def questions_of(data: Path) -> JSONLDataModule:
    return JSONLDataModule(path=str(data), labels=40, batch_size=8, seed=1)


def module(**arguments: object) -> CLoRAModule:
    usual = {"backbone": Backbone("embedded"), "lora": LoRA(), "learning_rate": 5e-3, "samples": 3, "seed": 1}
    return CLoRAModule(**{**usual, **arguments})


def fitted(root: Path, data: Path, changes: dict | None = None, **arguments: object) -> tuple[CLoRAModule, L.Trainer]:
    made, run = module(**arguments), trainer(root, **(changes or {}))
    run.fit(made, datamodule=questions_of(data))
    return made, run


@pytest.fixture(scope="module")
def trained(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[CLoRAModule, L.Trainer]:
    """A run with its folder."""
    changes = {"callbacks": [RunFolder()], "max_epochs": 3}
    return fitted(tmp_path_factory.mktemp("c_lora") / "run", data, changes, init_std=0.2)


# --- the loss --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["constant", "cyclic", "release"])
def test_loss_is_likelihood_plus_weighted_divergence(tmp_path: Path, data: Path, kind: str) -> None:
    made, run = fitted(tmp_path, data, kl_schedule=kind, kl_weight=3.0, nll_scale=2.0)
    made.log = lambda *_, **__: None
    batch, n, batches = next(iter(run.datamodule.train_dataloader())), 32, 4
    for step in (0, 3, 6):
        made._micro_step = step
        with made.contextual.recording():
            nll = made.nll(batch, made.training_noise())
        kl = made.contextual.divergence(batch.attention_mask, 0.2, "release" if kind == "release" else "mean")
        weight = {
            "constant": 3,
            "cyclic": 3 * batches * cyclic_share(step, batches),
            "release": 3 * RELEASE_FACTOR / len(made.contextual) * cyclic_share(step, release_cycle(n, 8)),
        }[kind]
        torch.testing.assert_close(made.loss(batch), 2 * nll + weight * kl)


def test_without_divergence_and_spread_it_trains_as_lora(tmp_path: Path, data: Path) -> None:
    made = module(kl_weight=0.0, init_std=1e-12, contextual_learning_rate=1e-30)
    plain = LoRAModule(Backbone("embedded"), LoRA(), learning_rate=5e-3, seed=1)
    for one in (made, plain):
        trainer(tmp_path).fit(one, datamodule=questions_of(data))
    for name, value in plain.trainable().items():
        torch.testing.assert_close(made.trainable()[name], value, atol=1e-5, rtol=1e-4)


def test_a_heavy_divergence_draws_the_law_to_the_prior(tmp_path: Path, data: Path) -> None:
    found = {}
    for weight in (0.0, 300.0):
        made, run = fitted(tmp_path, data, {"max_epochs": 5}, kl_weight=weight, beta=0.3, contextual_learning_rate=3e-2)
        batch = next(iter(run.datamodule.train_dataloader()))
        with made.contextual.recording(), torch.no_grad():
            made.answer_logits(batch)
            found[weight] = made.contextual.divergence(batch.attention_mask, 0.3).item()
    assert found[300.0] < 0.25 * found[0.0]


def test_groups_have_their_own_rates(tmp_path: Path, data: Path) -> None:
    made, run = fitted(tmp_path, data, contextual_learning_rate=1e-2)
    first, second = run.optimizers[0].param_groups
    assert (first["initial_lr"], second["initial_lr"]) == (5e-3, 1e-2)
    assert sum(p.numel() for p in second["params"]) == 8896 * len(made.contextual)


def test_two_optimisers_count_as_one(tmp_path: Path, data: Path) -> None:
    made, run = fitted(tmp_path, data, optimisers="two", contextual_learning_rate=0.01)
    assert run.global_step == 4
    assert [type(o).__name__ for o in run.optimizers] == ["AdamW", "SGD"]
    assert all(scheduler.scheduler.last_epoch == 4 for scheduler in run.lr_scheduler_configs)
    fresh = module(optimisers="two")
    fresh.configure_model()
    moved = {name for name, value in fresh.trainable().items() if not torch.equal(value, made.trainable()[name])}
    assert {name for name in fresh.trainable() if ".lora_B." in name or ".out.bias" in name} <= moved
    one, _ = fitted(tmp_path, data)
    assert not torch.equal(*(next(iter(m.trainable().values())) for m in (one, fresh)))


def test_two_optimisers_step_as_released(tmp_path: Path, data: Path) -> None:
    """AdamW's first step on A and B is the rate times the gradient's sign, SGD's its rate times the gradient."""
    rates = {"learning_rate": 1e-3, "contextual_learning_rate": 0.01, "warmup": 0.0}
    made, watch = module(optimisers="two", **rates), Gradients()
    made.configure_model()
    before = {name: value.detach().clone() for name, value in made.trainable().items()}
    trainer(tmp_path, max_steps=1, callbacks=[watch]).fit(made, datamodule=questions_of(data))
    assert len(watch.seen) == 2
    assert_equal(*watch.seen)  # both optimisers step on the gradient of the one loss
    for name, gradient in watch.seen[0].items():
        moved = before[name] - made.trainable()[name].detach()
        if ".lora_E." in name:
            torch.testing.assert_close(moved, 0.01 * gradient, atol=1e-6, rtol=1e-3)
        else:
            clear = gradient.abs() > 1e-4
            torch.testing.assert_close(moved[clear], 1e-3 * gradient[clear].sign(), atol=0, rtol=0.02)


def test_training_leaves_the_global_random_state_alone(tmp_path: Path, data: Path) -> None:
    before = torch.random.get_rng_state()
    fitted(tmp_path, data)
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize("optimisers", ["one", "two"])
def test_resumed_inside_a_cycle_it_ends_bit_for_bit(tmp_path: Path, data: Path, optimisers: str) -> None:
    options = {"kl_schedule": "cyclic", "optimisers": optimisers, "kl_weight": 0.3}
    keep = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=6, save_top_k=-1)  # inside a cycle of four
    whole, reference = fitted(tmp_path, data, {"max_epochs": 3, "callbacks": [keep]}, **options)
    second, run = module(**options), trainer(tmp_path, max_epochs=3)
    run.fit(second, datamodule=questions_of(data), ckpt_path=tmp_path / "step=6.ckpt", weights_only=True)
    assert run.global_step == reference.global_step == 12
    assert second._micro_step == whole._micro_step == 12
    assert_equal(dict(second.trainable()), dict(whole.trainable()))
    moments = [[optimizer.state_dict()["state"] for optimizer in one.optimizers] for one in (run, reference)]
    assert_equal(*moments)


# --- prediction ------------------------------------------------------------------------------------------------------


def test_prediction_is_a_function_of_the_question_alone(data: Path, trained) -> None:
    made, _ = trained
    found = {}
    for size in (5, 40):
        datamodule = JSONLDataModule(path=str(data), labels=40, batch_size=8, eval_batch_size=size, seed=1)
        predictions = trainer(Path(made.trainer.default_root_dir)).predict(made, datamodule=datamodule)
        predictions = predictions[0] if isinstance(predictions[0], list) else predictions
        rows = torch.cat([batch.example_id for batch in datamodule.test_dataloader()[0]])
        found[size] = torch.cat([p.log_probs for p in predictions], dim=1)[:, rows.argsort()]
    assert found[5].shape[:2] == (3, 40)
    torch.testing.assert_close(found[5], found[40], atol=1e-4, rtol=1e-4)
    assert (found[5].std(0) > 0).all()


def test_mean_is_deterministic_and_draws_are_reproducible(data: Path, trained) -> None:
    made, run = trained
    batch = next(iter(run.datamodule.val_dataloader()))
    with torch.no_grad():
        sampled = made.predictive(batch).log_probs
        assert torch.equal(made.predictive(batch).log_probs, sampled)
        made.samples = 0
        mean = made.predictive(batch).log_probs
        assert torch.equal(made.predictive(batch).log_probs, mean)
        assert torch.equal(mean[0], made.answer_logits(batch)[0].double().log_softmax(-1))
        made.samples, made.coherent = 3, True
        coherent = made.predictive(batch).log_probs
        made.coherent = False
    assert len(mean) == 1
    assert (sampled - mean).abs().max() > 1e-4
    assert (coherent - sampled).abs().max() > 1e-4


def test_names_in_tables() -> None:
    assert module(samples=10).method == "c_lora_10"
    assert module(samples=0).method == "c_lora_mean"
    assert module(samples=10, context="free").method == "c_lora_fe_10"


# --- what a run leaves behind ----------------------------------------------------------------------------------------


def test_plain_peft_loads_the_folded_mean(data: Path, trained) -> None:
    """Exactly C-LoRA's mean where the modules ignore their input; the adapter holds nothing peft does not know."""
    import peft
    from safetensors.torch import load_file

    made, run = trained
    folder = Path(run.default_root_dir) / "posterior"
    names = load_file(folder / "adapter_model.safetensors").keys()
    assert names == {name for name in made.trainable() if ".lora_E." not in name}
    config = peft.PeftConfig.from_pretrained(folder)
    assert config.r == made.lora.r
    plain = LoRAModule(Backbone("embedded", adapter=str(folder)))
    plain.configure_model()
    batch = next(iter(run.datamodule.val_dataloader()))
    kept = {name: value.detach().clone() for name, value in made.trainable().items()}
    with torch.no_grad():
        for contextual in made.contextual.modules.values():
            contextual.out.weight[: made.lora.r**2] = 0.0
            contextual.out.bias[: made.lora.r**2] = contextual.mean_at_zero().flatten()
        for name, value in kept.items():  # the mean at zero, now whatever the input
            if name.endswith("lora_E.out.bias"):
                site = name.removesuffix(".out.bias")
                hidden = torch.relu(kept[f"{site}.hidden.bias"])
                law = kept[f"{site}.out.weight"] @ hidden + value
                made.trainable()[name][: made.lora.r**2] = law[: made.lora.r**2]
        torch.testing.assert_close(plain.answer_logits(batch), made.answer_logits(batch), atol=1e-4, rtol=1e-4)
        made.load_state_dict(kept)


def test_posterior_folder_gives_c_lora_back(data: Path, trained) -> None:
    made, run = trained
    folder = Path(run.default_root_dir) / "posterior"
    assert json.loads((folder / "posterior.json").read_text())["family"] == "contextual"
    again = module(backbone=Backbone("embedded", adapter=str(folder)))
    again.configure_model()
    assert_equal(dict(again.trainable()), dict(made.trainable()))
    assert_equal(load_posterior(folder).state_dict(), made.posterior().state_dict())
    with pytest.raises(UsageError, match="no law over weights"):
        load_posterior(folder).sample(1, torch.Generator())
    with pytest.raises(UsageError, match="does not fit"):
        module(backbone=Backbone("embedded", adapter=str(folder)), context="free").configure_model()


def test_an_adapter_without_contextual_modules_is_a_start_but_not_tested(tmp_path: Path, data: Path) -> None:
    plain, _ = fitted(tmp_path / "plain", data)
    mean, model = Point(plain.posterior().mean()), plain.model
    save_posterior(mean, tmp_path / "plain", model.adapter_config, model.base_fingerprint)
    start = {"backbone": Backbone("embedded", adapter=str(tmp_path / "plain"))}
    for stage in ("test", "predict"):
        with pytest.raises(UsageError, match=r"has no contextual modules.*LoRAModule"):
            getattr(trainer(tmp_path), stage)(module(**start), datamodule=questions_of(data))
    made, run = fitted(tmp_path / "own", data, **start)
    run.test(made, datamodule=questions_of(data), verbose=False)


def test_checkpoint_gives_c_lora_back(tmp_path: Path, trained) -> None:
    made, run = trained
    run.save_checkpoint(tmp_path / "own.ckpt")
    again = CLoRAModule.load_from_checkpoint(tmp_path / "own.ckpt", weights_only=True)
    assert_equal(dict(again.trainable()), dict(made.trainable()))
    assert (again.context, again.samples) == (made.context, made.samples)


def test_its_posterior_cannot_be_one_of_a_mixture(data: Path, trained) -> None:
    _, run = trained
    folder = str(Path(run.default_root_dir) / "posterior")
    plain = LoRAModule(Backbone("embedded", adapter=folder))
    with pytest.raises(UsageError, match="no law over weights"):
        trainer(Path(folder), callbacks=[SavedPosteriors([folder])]).test(plain, datamodule=questions_of(data))


def test_swag_collects_and_samples_the_modules_too(tmp_path: Path, data: Path) -> None:
    swag = SWAG(start=0, samples=2, dropout=True)
    made, run = fitted(tmp_path, data, {"max_epochs": 3, "callbacks": [swag]})
    assert swag.posterior.mean().keys() == made.trainable().keys()
    batch = next(iter(run.datamodule.val_dataloader()))
    swag.on_test_start(run, made)
    with torch.no_grad():
        predicted = made.prediction(batch).log_probs
        bank = swag.posterior.sample(2, torch.Generator().manual_seed(0))
        together = made.answer_logits(batch, Samples(bank, torch.arange(2), 5))
        for index in range(2):
            made.load_state_dict({name: value[index] for name, value in bank.items()})
            alone = made.answer_logits(batch, Samples(draws=torch.tensor([index]), seed=5))[0]
            torch.testing.assert_close(together[index], alone, atol=1e-4, rtol=1e-4)
    swag.on_test_end(run, made)
    assert predicted.shape[0] == 2
    save_posterior(swag.posterior, tmp_path / "saved", made.model.adapter_config, made.model.base_fingerprint)
    again = module(backbone=Backbone("embedded", adapter=str(tmp_path / "saved")))
    again.configure_model()
    assert_equal({name: value.data for name, value in again.trainable().items()}, swag.posterior.mean())


def test_jacobian_at_the_mean_of_e(trained) -> None:
    """What linearised posteriors and Laplace use: right for A, B and the modules' own weights."""
    made, run = trained
    batch = next(iter(run.datamodule.val_dataloader()))
    _, jacobian = contrast_jacobian(made.model, batch)
    logits = made.answer_logits(batch)[0]
    parameters = made.trainable()
    slopes = torch.autograd.grad((logits[:, 1] - logits[:, 0]).sum(), list(parameters.values()), allow_unused=True)
    for name, slope in zip(parameters, slopes, strict=True):
        expected = torch.zeros_like(parameters[name]) if slope is None else slope
        torch.testing.assert_close(jacobian[name][:, 0].sum(0), expected, atol=1e-4, rtol=1e-3, msg=name)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"context": "paragraph"}, "paragraph.*token, sequence, last, free"),
        ({"init": "random"}, "random.*lora, release"),
        ({"kl_schedule": "linear"}, "linear.*constant, cyclic, release"),
        ({"optimisers": "three"}, "three.*one, two"),
        ({"init_std": 1.0}, "init_std is 1.0"),
        ({"beta": 0.0}, "beta is 0.0"),
        ({"kl_weight": -1.0}, "kl_weight is -1.0"),
        ({"samples": -1}, "samples is -1"),
        ({"width": 0}, "width is 0"),
        ({"nll_scale": 0.0}, "nll_scale is 0.0"),
        ({"contextual_learning_rate": 0.0}, "contextual_learning_rate is 0.0"),
    ],
)
def test_bad_arguments(arguments: dict, match: str) -> None:
    with pytest.raises(UsageError, match=match):
        CLoRAModule(**arguments)
