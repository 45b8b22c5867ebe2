"""Maximum likelihood, maximum a posteriori and MC dropout through the real Trainer."""

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch

from bayeslora import SWAG, Backbone, LoRA, LoRAModule, Predictions, SavedPosteriors, UsageError, save_posterior
from bayeslora.datamodules import JSONLDataModule
from bayeslora.lightning_modules.optimisation import warmup_decay
from bayeslora.results.prediction_file import read_predictions
from tests.helpers.ddp import on_processes
from tests.helpers.runs import trainer


def fitted(root: Path, data: Path, dropout: float = 0.0, **arguments: object) -> tuple[LoRAModule, L.Trainer]:
    module = LoRAModule(Backbone("embedded"), LoRA(dropout=dropout), learning_rate=1e-3, seed=1, **arguments)
    run = trainer(root)
    run.fit(module, datamodule=JSONLDataModule(path=str(data), labels=40, batch_size=8, seed=1))
    return module, run


def test_schedule_rises_then_falls_to_zero() -> None:
    factors = [warmup_decay(step, 0.2, 10) for step in range(11)]
    assert factors == pytest.approx([0, 0.5, 1, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125, 0])
    assert warmup_decay(0, 0.0, 10) == 1


def test_prior_adds_its_share_of_the_loss(tmp_path: Path, data: Path) -> None:
    module, run = fitted(tmp_path, data, prior_std=0.1)
    batch = next(iter(run.datamodule.train_dataloader()))
    n, square = 32, sum(p.square().sum() for p in module.trainable().values())
    assert len(run.datamodule.train_questions) == n
    module._micro_step = 0
    torch.testing.assert_close(module.loss(batch), module.nll(batch, module.training_noise()))
    torch.testing.assert_close(module.penalty(), square / (2 * 0.1**2 * n))
    gradient = torch.autograd.grad(module.penalty(), next(iter(module.trainable().values())))[0]
    torch.testing.assert_close(gradient, next(iter(module.trainable().values())) / (0.1**2 * n), atol=1e-4, rtol=1e-3)


def test_full_vocabulary_loss_is_the_language_models(tmp_path: Path, data: Path) -> None:
    module, run = fitted(tmp_path, data, support="full_vocab")
    batch = next(iter(run.datamodule.val_dataloader()))
    vocabulary = module.model(batch, vocabulary="logits").vocab_logits
    target = batch.answer_ids.gather(-1, batch.label[:, None]).squeeze(-1)
    expected = torch.nn.functional.cross_entropy(vocabulary, target)
    torch.testing.assert_close(module.nll(batch, module.training_noise()), expected)


def test_mc_dropout_is_a_function_of_the_question_alone(tmp_path: Path, data: Path) -> None:
    module, run = fitted(tmp_path, data, dropout=0.3, samples=4)
    assert module.method == "mc_dropout_4"
    predictions = {}
    for size in (5, 40):
        datamodule = JSONLDataModule(path=str(data), labels=40, batch_size=8, eval_batch_size=size, seed=1)
        found = run.predict(module, datamodule=datamodule)
        found = found if isinstance(found[0], list) else [found]
        batches = datamodule.test_dataloader()[0]
        rows = torch.cat([batch.example_id for batch in batches])
        predictions[size] = torch.cat([p.log_probs for p in found[0]], dim=1)[:, rows.argsort()]
    assert predictions[5].shape[:2] == (4, 40)
    torch.testing.assert_close(predictions[5], predictions[40], atol=1e-5, rtol=1e-5)
    assert (predictions[5].std(0) > 0).all()
    assert module.model.context.state.keys is None


def test_validation_sees_no_noise(tmp_path: Path, data: Path) -> None:
    module, run = fitted(tmp_path, data, dropout=0.5)
    batch = next(iter(run.datamodule.val_dataloader()))
    assert torch.equal(module.answer_logits(batch), module.answer_logits(batch))
    assert not torch.equal(module.loss(batch), module.nll(batch, module.training_noise())) or module._micro_step > 0
    assert "val/nll" in run.callback_metrics


def test_training_leaves_the_global_random_state_alone(tmp_path: Path, data: Path) -> None:
    before = torch.random.get_rng_state()
    fitted(tmp_path, data, dropout=0.3)
    assert torch.equal(before, torch.random.get_rng_state())


def test_checkpoint_loads_without_the_command_line(tmp_path: Path, data: Path) -> None:
    module, run = fitted(tmp_path, data)
    run.save_checkpoint(tmp_path / "own.ckpt")
    again = LoRAModule.load_from_checkpoint(tmp_path / "own.ckpt", weights_only=True)
    for name, value in module.trainable().items():
        assert torch.equal(again.trainable()[name], value)


def test_two_processes_train_alike_and_test_every_question_once(tmp_path: Path, data: Path) -> None:
    found = on_processes(2, _fitted_together, tmp_path, data)
    answers = next(iter(read_predictions(tmp_path / "test" / "predictions.parquet").datasets.values()))
    assert (len(answers), answers.n_members, found["snapshots"]) == (40, 3, 2)
    assert torch.equal(*found["weights"])
    assert torch.equal(*found["moments"])


def _fitted_together(root: Path, data: Path) -> dict[str, Any]:
    """The weights and the moments of SWAG that two processes end with, after they have tested as well."""
    swag = SWAG(start=0, rank=2, samples=3)
    options = {"devices": 2, "strategy": "ddp", "max_epochs": 2, "enable_checkpointing": False}
    run = trainer(root, callbacks=[swag, Predictions()], **options)
    module = LoRAModule(Backbone("embedded"), LoRA(dropout=0.1), learning_rate=1e-3, seed=1)
    datamodule = JSONLDataModule(path=str(data), labels=39, batch_size=4, eval_batch_size=7, seed=1)
    run.fit(module, datamodule=datamodule)
    weights = run.strategy.all_gather(torch.cat([p.detach().flatten() for p in module.trainable().values()]))
    moments = run.strategy.all_gather(torch.cat([swag.moments.mean, swag.moments.m2]))
    run.test(module, datamodule=datamodule, verbose=False)
    return {"weights": weights, "moments": moments, "snapshots": swag.moments.count}


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"samples": 3}, "lora.dropout"),
        ({"prior_std": 0.0}, "prior_std is 0"),
        ({"warmup": 2.0}, "warmup is 2"),
        ({"learning_rate": 0.0}, "learning_rate is 0"),
        ({"support": "letters"}, "letters.*options, full_vocab"),
        ({"backbone": {"pretraind": "x"}}, "pretraind.*pretrained"),
    ],
)
def test_bad_arguments(arguments: dict, match: str) -> None:
    with pytest.raises(UsageError, match=match):
        LoRAModule(**arguments)


def test_sharded_strategies_are_refused(data: Path, tmp_path: Path) -> None:
    module = LoRAModule(Backbone("embedded", quantization="4bit"))
    run = trainer(tmp_path)
    module._trainer = run
    run.strategy.__class__ = type("FSDPStrategy", (type(run.strategy),), {})
    with pytest.raises(UsageError, match=r"FSDPStrategy.*ddp"):
        module.configure_model()


def test_precisions_that_would_convert_the_weights_are_refused(data: Path, tmp_path: Path) -> None:
    run, datamodule = trainer(tmp_path, precision="bf16-true"), JSONLDataModule(path=str(data), labels=40)
    with pytest.raises(UsageError, match=r"bf16-true.*bf16-mixed"):
        run.fit(LoRAModule(Backbone("embedded")), datamodule=datamodule)


def test_dropout_draws_of_an_adapter_without_dropout_are_refused(tmp_path: Path, data: Path) -> None:
    """Its own configuration holds, so that the draws would all be one and the same network."""
    plain = LoRAModule(Backbone("embedded"), LoRA(r=2))
    plain.configure_model()
    save_posterior(plain.posterior(), tmp_path / "adapter", plain.model.adapter_config, plain.model.base_fingerprint)
    backbone, questions = Backbone("embedded", adapter=str(tmp_path / "adapter")), JSONLDataModule(path=str(data))
    with pytest.raises(UsageError, match=r"samples is 3, but backbone\.adapter .* has no dropout"):
        trainer(tmp_path).test(LoRAModule(backbone, LoRA(dropout=0.3), samples=3), datamodule=questions)
    point = SavedPosteriors([str(tmp_path / "adapter")], samples=3, dropout=True)
    with pytest.raises(UsageError, match="dropout is true, but the adapter has none to draw"):
        trainer(tmp_path, callbacks=[point]).test(LoRAModule(backbone), datamodule=questions)
