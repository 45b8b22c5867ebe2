"""Modules of other packages: what is wrong is said before training, and what such modules have is taken as it is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import lightning as L
import peft
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, WeightedRandomSampler
from transformers.pytorch_utils import Conv1D

from bayeslora import SWAG, TFB, Laplace, Predictions, Report, RunFolder, SavedPosteriors, Temperature
from bayeslora.callbacks.attached import Attached
from bayeslora.curvature.linear_jacobian import linear_jacobian
from bayeslora.errors import UsageError
from bayeslora.results.prediction_file import read_predictions
from tests.helpers.classifier import QUIET, loader


class Own(L.LightningModule):
    """A classifier that knows nothing of this package and does nothing when it is tested."""

    def __init__(self, net: nn.Module | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = net or nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))
        self.steps = 0

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        self.steps += 1
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def validation_step(self, batch: list[Tensor], batch_idx: int, dataloader_idx: int = 0) -> None:
        self.log("val/nll", nn.functional.cross_entropy(self.net(batch[0]), batch[1]))

    def test_step(self, batch: list[Tensor], batch_idx: int, dataloader_idx: int = 0) -> None:
        pass

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW([p for p in self.parameters() if p.requires_grad], lr=0.1)


_LOGITS: dict[str, Any] = {"logits_fn": lambda module, batch: module.net(batch[0])}
FUNCTIONS: dict[str, Any] = {**_LOGITS, "label_fn": lambda batch: batch[1]}


def trainer(root: Path, *callbacks: L.Callback, **options: Any) -> L.Trainer:
    return L.Trainer(default_root_dir=root, callbacks=list(callbacks), **(QUIET | {"max_epochs": 2} | options))


def refused_before_training(root: Path, message: str, module: Own, *callbacks: L.Callback, data: Any = None) -> None:
    data = data or (loader(), loader())
    with pytest.raises(UsageError, match=message):
        trainer(root, *callbacks).fit(module, *data)
    assert module.steps == 0


class Score(nn.Linear):
    """One output, as a regression has it."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)[:, 0]


@pytest.mark.parametrize("validation", [True, False])
@pytest.mark.parametrize(("net", "shape"), [(nn.Linear(4, 1), r"\[4, 1\]"), (Score(4, 1), r"\[4\]")])
def test_one_output_is_refused_before_training(net: nn.Module, shape: str, validation: bool, tmp_path: Path) -> None:
    data = (loader(), loader()) if validation else (loader(),)
    message = rf"logits_fn gave shape {shape} for Own; allowed: logits \[B, C\] of C >= 2"
    refused_before_training(tmp_path, message, Own(net), Laplace("full", **FUNCTIONS), data=data)


@pytest.mark.parametrize(
    ("label_fn", "message"),
    [
        (lambda batch: batch[1].float(), r"torch.float32 for 4 questions; allowed: their class numbers"),
        (lambda batch: nn.functional.one_hot(batch[1], 3), r"\(4, 3\) of torch.int64 for 4 questions"),
        (lambda batch: batch[1] + 2, r"labels from 2 to 3; allowed: class numbers from 0 to 2"),
    ],
)
def test_labels_are_class_numbers(label_fn: Any, message: str, tmp_path: Path) -> None:
    callback = Predictions(logits_fn=FUNCTIONS["logits_fn"], label_fn=label_fn)
    refused_before_training(tmp_path, message, Own(), callback)


def test_training_batches_of_another_kind_are_no_error(tmp_path: Path) -> None:
    class Pairs(Own):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return super().training_step(batch["both"], batch_idx)

    pairs = DataLoader([{"both": batch} for batch in loader()], batch_size=None)
    with pytest.warns(UserWarning, match="could not be tried on a training batch"):
        trainer(tmp_path, Predictions(**FUNCTIONS)).fit(Pairs(), pairs)


def test_trying_leaves_modes_statistics_and_random_numbers_as_they_are() -> None:
    def train(*callbacks: L.Callback) -> dict[str, Tensor]:
        torch.manual_seed(1)
        net = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 3))
        module = Own(net)
        options = {"num_sanity_val_steps": 0, "limit_val_batches": 0, "enable_checkpointing": False}
        trainer(Path("none"), *callbacks, **options).fit(module, loader())
        return module.state_dict()

    alone, attached = train(), train(Predictions(**FUNCTIONS))
    assert all(torch.equal(value, attached[name]) for name, value in alone.items())


def test_functions_are_tried_once_for_all_callbacks(tmp_path: Path) -> None:
    asked = []

    def logits(module: Own, batch: list[Tensor]) -> Tensor:
        asked.append(len(batch[0]))
        return module.net(batch[0])

    functions = {"logits_fn": logits, "label_fn": FUNCTIONS["label_fn"]}
    callbacks: list[Attached] = [Predictions(**functions), Temperature(**functions)]
    trainer(tmp_path, *callbacks).fit(Own(), loader(), loader())
    assert asked == [4]


def test_two_posteriors_are_refused_before_training(tmp_path: Path) -> None:
    both = [SWAG(start=0, **FUNCTIONS), Laplace("full", **FUNCTIONS)]
    refused_before_training(tmp_path, r"SWAG and Laplace both want to predict; .*predict=None", Own(), *both)
    both[0] = SWAG(start=0, predict=None, **FUNCTIONS)
    trainer(tmp_path, *both, max_epochs=1).fit(Own(), loader(), loader())


def test_callbacks_that_need_validation_say_so_before_training(tmp_path: Path) -> None:
    for callback in (Temperature(**FUNCTIONS), Laplace("full", "validation", **FUNCTIONS)):
        refused_before_training(tmp_path, "validation", Own(), callback, data=(loader(),))
    given = Temperature(**FUNCTIONS, val_batches=list(loader()))
    trainer(tmp_path, given).fit(Own(), loader())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sampler": WeightedRandomSampler(torch.ones(12), 24)}, "draws its 24 questions with replacement"),
        ({"drop_last": True}, "drops its last batch, so that 2 of 12 questions are left out"),
    ],
)
def test_laplace_says_that_questions_do_not_count_once(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    train = DataLoader(loader().dataset, 5, **options)
    with pytest.warns(UserWarning, match=f"{message}.* give Laplace train_batches"):
        trainer(tmp_path, Laplace("full", 1.0, **FUNCTIONS), max_epochs=1).fit(Own(), train)


def test_validation_questions_are_found_where_the_first_epochs_are_not_validated(tmp_path: Path) -> None:
    module, seldom = Own(), {"check_val_every_n_epoch": 3, "num_sanity_val_steps": 0}
    made = trainer(tmp_path, Temperature(**FUNCTIONS), Predictions(**FUNCTIONS), **seldom)
    made.fit(module, loader(), loader())
    assert module.steps == 6
    assert "temperature" in str(made.test(module, loader(), verbose=False))


@pytest.mark.parametrize("structure", ["kfac", "ekfac", "diag"])
def test_laplace_says_before_training_what_it_cannot_fit(structure: str, tmp_path: Path) -> None:
    message = rf"structure {structure} needs a module of this package; allowed for others: full"
    refused_before_training(tmp_path, message, Own(), Laplace(structure, **FUNCTIONS))


def test_laplace_names_what_to_freeze(tmp_path: Path) -> None:
    class Mean(nn.Embedding):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x.abs().long()).mean(1)

    net = nn.Sequential(Mean(10, 4), nn.LayerNorm(4), nn.Linear(4, 3))
    message = r"net.0.weight \(Mean\), net.1.weight \(LayerNorm\), net.1.bias .*get_parameter\('net.0.weight'\)"
    refused_before_training(tmp_path, message, Own(net), Laplace("full", **FUNCTIONS))
    net[0].requires_grad_(False)
    net[1].requires_grad_(False)
    trainer(tmp_path, Laplace("full", **FUNCTIONS), max_epochs=1).fit(Own(net), loader())


def test_laplace_knows_the_layers_of_gpt_2() -> None:
    module = Own(nn.Sequential(nn.Linear(4, 8), nn.Tanh(), Conv1D(3, 8)))
    batch = next(iter(loader()))
    names = ["net.2.weight", "net.2.bias"]
    _, jacobian = linear_jacobian(module, lambda b: module.net(b[0]), batch, names)
    parameters = dict(module.named_parameters())

    def logits(weight: Tensor, bias: Tensor) -> Tensor:
        values = torch.func.functional_call(module, {**parameters, names[0]: weight, names[1]: bias}, (batch[0],))
        return values[:, 1:] - values[:, :1]

    module.forward = lambda x: module.net(x)  # type: ignore[method-assign]
    expected = torch.autograd.functional.jacobian(logits, (parameters[names[0]], parameters[names[1]]))
    for name, value in zip(names, expected, strict=True):
        torch.testing.assert_close(jacobian[name], value)


def test_laplace_sees_the_layers_of_a_compiled_network() -> None:
    module, batch = Own(), next(iter(loader()))
    _, plain = linear_jacobian(module, lambda b: module.net(b[0]), batch, ["net.0.weight"])
    module.net = torch.compile(module.net, backend="eager")
    module.net(batch[0])  # compiled before it is watched
    _, found = linear_jacobian(module, lambda b: module.net(b[0]), batch, ["net._orig_mod.0.weight"])
    torch.testing.assert_close(found["net._orig_mod.0.weight"], plain["net.0.weight"])


def test_several_loaders(tmp_path: Path) -> None:
    module, callbacks = Own(), [Temperature(**FUNCTIONS), SWAG(start=0, **FUNCTIONS), Predictions(**FUNCTIONS)]
    made = trainer(tmp_path, *callbacks)
    made.fit(module, loader(), [loader(), loader(2)])
    found = made.test(module, [loader(), loader(2)], verbose=False)
    datasets = read_predictions(tmp_path / "test" / "predictions.parquet").datasets
    sizes = {name: len(answers) for name, answers in datasets.items()}
    assert sizes == {"test": 12, "test_1": 8}
    assert {"test/test/accuracy", "test/test_1/nll"} <= found[0].keys()
    for names in (["a"], ["a", "a"], ["a", "b", "c"]):
        wrong = trainer(tmp_path / "wrong", Predictions(**FUNCTIONS, datasets=names))
        with pytest.raises(UsageError, match=r"datasets are a.* each of 2 loaders"):
            wrong.test(module, [loader(), loader(2)], verbose=False)


def test_the_test_returns_the_metrics_and_the_temperature(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    module, temperature = Own(), Temperature(**FUNCTIONS)
    made = trainer(tmp_path, temperature, Predictions(**FUNCTIONS), Report(plots=False))
    made.fit(module, loader(), loader())
    returned = made.test(module, loader(), verbose=False)[0]
    metrics = json.loads((tmp_path / "test" / "metrics.json").read_text())
    for name in ("accuracy", "nll", "brier", "ece_15"):
        assert returned[f"test/test/{name}"] == pytest.approx(metrics["datasets"]["test"][name], abs=1e-6)
    assert metrics["temperature"] == temperature.temperature == pytest.approx(returned["test/temperature"])
    assert f"temperature {temperature.temperature:.3g}" in capsys.readouterr().out


def test_a_trial_has_no_snapshots_and_is_tested_all_the_same(tmp_path: Path) -> None:
    made = trainer(tmp_path, SWAG(start=1, **FUNCTIONS), Predictions(**FUNCTIONS), fast_dev_run=True)
    made.fit(Own(), loader(), loader())
    with pytest.warns(UserWarning, match="too few snapshots in this trial"):
        made.test(Own(), loader(), verbose=False)


def test_what_was_fitted_is_kept_or_the_message_says_how(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    module, swag = Own(), SWAG(start=0, samples=4, **FUNCTIONS)
    with caplog.at_level("INFO", "lightning.pytorch.utilities.rank_zero"):
        trainer(tmp_path / "none", swag).fit(module, loader())
        assert "give the trainer a RunFolder callback or call save_posterior" in caplog.text
        caplog.clear()
        trainer(tmp_path / "run", swag, RunFolder()).fit(module, loader())
        assert "RunFolder" not in caplog.text
    made = trainer(tmp_path / "kept", SavedPosteriors([str(tmp_path / "run" / "posterior")], samples=4, **_LOGITS))
    made.callbacks.append(Predictions(**FUNCTIONS))
    trainer(tmp_path / "own", swag, Predictions(**FUNCTIONS)).test(module, loader(), verbose=False)
    made.test(module, loader(), verbose=False)
    own, kept = (read_predictions(tmp_path / name / "test" / "predictions.parquet") for name in ("own", "kept"))
    assert own.datasets["test"].members.shape == kept.datasets["test"].members.shape == (12, 4, 3)


@pytest.fixture
def adapted() -> Own:
    """A module with LoRA layers of peft's and other dropout beside theirs."""
    net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Dropout(0.9), nn.Linear(8, 3))
    return Own(peft.get_peft_model(net, peft.LoraConfig(r=2, target_modules=["0", "3"], lora_dropout=0.5)))


def predicted(root: Path, module: Own, *callbacks: L.Callback) -> Tensor:
    made = trainer(root, *callbacks, Predictions(**FUNCTIONS))
    made.fit(module, loader())
    made.test(module, loader(), verbose=False)
    return read_predictions(root / "test" / "predictions.parquet").datasets["test"].members


def test_tfb_on_a_module_with_lora_layers(adapted: Own, tmp_path: Path) -> None:
    tfb = TFB(anchors=12, samples=4, tolerance=0.1, logits_fn=FUNCTIONS["logits_fn"])
    members = predicted(tmp_path, adapted, tfb)
    assert tfb.posterior is not None
    assert all(scale > 0 for scale in tfb.posterior.sigma.values())
    assert (members.std(1) > 0).any()


def test_dropout_on_a_module_with_lora_layers(adapted: Own, tmp_path: Path) -> None:
    swa: dict[str, Any] = {"start": 0, "mode": "swa", "samples": 4, "dropout": True}
    members = predicted(tmp_path / "a", adapted, SWAG(**swa, **FUNCTIONS))
    assert (members.std(1) > 0).any()  # one set of weights: what differs is dropout
    for layer in adapted.modules():
        if isinstance(layer, nn.Dropout):
            layer.p = 0.0
    with pytest.raises(UsageError, match="has no dropout to draw"):
        predicted(tmp_path / "b", adapted, SWAG(**swa, **FUNCTIONS))


def test_a_draw_of_dropout_repeats_and_leaves_the_generators_alone(adapted: Own) -> None:
    from bayeslora.models.foreign_dropout import dropout_draw, dropout_layers

    adapted.eval()
    with torch.no_grad():  # so that LoRA does something
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    layers, x = dropout_layers(adapted), torch.randn(6, 4)
    assert [layer.p for layer in layers] == [0.5, 0.5]  # LoRA's own, not the network's 0.9
    state, found = torch.get_rng_state(), []
    for seed in (1, 1, 2):
        with dropout_draw(layers, seed, torch.device("cpu")):
            found.append(adapted.net(x))
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])
    assert torch.equal(state, torch.get_rng_state())
    assert not any(layer.training for layer in layers)


def test_batches_without_labels_say_what_is_missing(tmp_path: Path) -> None:
    made = trainer(tmp_path, Temperature(**_LOGITS), Predictions(**FUNCTIONS))
    made.fit(Own(), loader(), loader())
    with pytest.raises(UsageError, match=r"a batch \(list\) has no label; give the callback label_fn"):
        made.test(Own(), loader(), verbose=False)


def test_messages_of_the_python_api_name_python_arguments(tmp_path: Path) -> None:
    trainer(tmp_path, Predictions(**FUNCTIONS)).test(Own(), loader(), verbose=False)
    with pytest.raises(UsageError, match="overwrite=True"):
        trainer(tmp_path, Predictions(**FUNCTIONS)).test(Own(), loader(), verbose=False)
