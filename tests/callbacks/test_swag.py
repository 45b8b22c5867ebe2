"""SWAG on runs: when it collects, that it changes nothing, that it resumes, what it predicts and what it refuses."""

import copy
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn

from bayeslora.callbacks.posterior import SavedPosteriors, trainable_of
from bayeslora.callbacks.schedule import Schedule, Steps, swag_schedule
from bayeslora.callbacks.swag import SWAG
from bayeslora.errors import RunError, UsageError
from bayeslora.lightning_modules.prediction_path import owners
from bayeslora.streams import generator
from tests.helpers.classifier import QUIET, Classifier, loader, logits_of


def fit(callback: L.Callback | None, module: Classifier | None = None, ckpt: Any = None, **options: Any) -> L.Trainer:
    """Train on three batches an epoch; checkpoints are written where a folder for them is given."""
    callbacks = [*filter(None, [callback]), *options.pop("callbacks", [])]
    trainer = L.Trainer(callbacks=callbacks, enable_checkpointing="default_root_dir" in options, **QUIET, **options)
    trainer.fit(module or Classifier(), loader(), loader(1), ckpt_path=ckpt)
    return trainer


class Recorder(L.Callback):
    """Notes the weights and the number of snapshots after each batch."""

    def __init__(self, swag: SWAG) -> None:
        self.swag, self.before_validation = swag, []
        self.weights: list[Tensor] = []

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        self.weights.append(torch.cat([p.detach().flatten() for p in trainable_of(pl_module).values()]).clone())

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not trainer.sanity_checking:
            self.before_validation.append(self.swag.moments.count)


# --- collection ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("every", "epochs"), [(1, range(8, 18)), (3, (8, 11, 14, 17))])
def test_epochs_are_collected_after_their_last_step_and_before_their_validation(every: int, epochs: Any) -> None:
    swag = SWAG(start=8, every=every)
    recorder = Recorder(swag)
    fit(swag, max_epochs=18, callbacks=[recorder])
    wanted = torch.stack([recorder.weights[3 * epoch + 2] for epoch in epochs])
    assert swag.moments.count == len(wanted)
    torch.testing.assert_close(swag.moments.mean, wanted.mean(0), atol=1e-6, rtol=1e-5)
    assert recorder.before_validation == [sum(e <= epoch for e in epochs) for epoch in range(18)]


@pytest.mark.parametrize(("start", "count"), [(0.5, 5), (0.0, 10), (9, 1)])
def test_start_is_an_epoch_or_a_fraction(start: float, count: int) -> None:
    swag = SWAG(start=start)
    fit(swag, max_epochs=10)
    assert swag.moments.count == count


@pytest.mark.parametrize(("start", "steps"), [(2, range(2, 13, 2)), (0, range(2, 13, 2)), (0.5, range(6, 13, 2))])
def test_steps_are_optimiser_steps(start: float, steps: range) -> None:
    swag = SWAG(start=start, every=2, unit="step")
    recorder = Recorder(swag)
    trainer = L.Trainer(
        callbacks=[swag, recorder], accumulate_grad_batches=4, max_epochs=4, enable_checkpointing=False, **QUIET
    )
    trainer.fit(Classifier(), loader(12))
    assert trainer.global_step == 12
    wanted = torch.stack([recorder.weights[4 * step - 1] for step in steps])
    assert swag.moments.count == len(wanted)
    torch.testing.assert_close(swag.moments.mean, wanted.mean(0), atol=1e-6, rtol=1e-5)


def test_training_is_as_it_would_be_without() -> None:
    ends, states = [], []
    for callback in (None, SWAG(start=1, logits_fn=logits_of, label_fn=lambda batch: batch[1])):
        module = Classifier()
        trainer = fit(callback, module, max_epochs=4)
        states.append(torch.get_rng_state())
        ends.append(module.state_dict())
        logged = trainer.callback_metrics
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])
    assert torch.equal(*states)
    assert {"val_swa/nll", "val_swa/accuracy"} <= logged.keys()


def test_validated_mean_is_the_mean(tmp_path: Path) -> None:
    swag, module = SWAG(start=1, logits_fn=logits_of, label_fn=lambda batch: batch[1]), Classifier()
    logged = fit(swag, module, max_epochs=4).callback_metrics
    mean = copy.deepcopy(module)
    for name, value in swag.posterior.mean().items():
        mean.get_parameter(name).data.copy_(value)
    x, y = next(iter(loader(1)))
    torch.testing.assert_close(logged["val_swa/nll"], nn.functional.cross_entropy(mean.net(x), y))
    assert logged["val_swa/nll"] != logged["val/nll"]


def test_only_trainable_parameters_are_held() -> None:
    swag = SWAG(start=0, rank=4)
    fit(swag, max_epochs=3)
    assert list(swag.moments.layout.shapes) == ["net.2.weight", "net.2.bias"]
    assert swag.moments.nbytes == (2 + 4) * (24 + 3) * 4


class BestSeen(L.Callback):
    """Notes the weights that the first collected step starts from, and those of the best checkpoint then."""

    def __init__(self, best: ModelCheckpoint) -> None:
        self.best = best

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: Classifier, *_: Any) -> None:
        if trainer.global_step == 9:
            self.own = pl_module.net[2].weight.detach().clone()
            self.kept = torch.load(self.best.best_model_path, weights_only=True)["state_dict"]["net.2.weight"]


@pytest.mark.parametrize("back", [True, False])
def test_collection_goes_back_to_the_best_weights_where_asked(tmp_path: Path, back: bool) -> None:
    best = ModelCheckpoint(tmp_path, "best", monitor="val/nll", mode="max")  # that of an early epoch
    seen = BestSeen(best)
    fit(SWAG(start=3, start_from_best=back), max_epochs=4, default_root_dir=tmp_path, callbacks=[seen, best])
    assert torch.equal(seen.own, seen.kept) == back
    with pytest.raises(UsageError, match="no best checkpoint"):
        fit(SWAG(start=3, start_from_best=True), max_epochs=4)


# --- learning rate ---------------------------------------------------------------------------------------------------


def test_annealed_rates_are_the_releases() -> None:
    steps = Steps(total=180, start=80, epoch=10, cycle=10, first=10)
    schedule = Schedule("anneal", swa_lr=1e-4, anneal_epochs=5)
    found = {epoch: 6e-4 * swag_schedule(10 * epoch, schedule, steps, 6e-4) for epoch in (1, 2, 8, 9, 13, 17)}
    wanted = {1: 5.556e-4, 2: 5.674e-4, 8: 3.546e-4, 9: 3.037e-4, 13: 1e-4, 17: 1e-4}
    assert found == {epoch: pytest.approx(rate, rel=2e-4) for epoch, rate in wanted.items()}


def test_constant_cyclic_and_linear_rates() -> None:
    steps = Steps(total=100, start=50, epoch=10, cycle=10, first=10)
    rate = {
        kind: [swag_schedule(t, Schedule(kind, 0.1, 0.0), steps, 1.0) for t in range(100)]
        for kind in ("constant", "cyclic", "linear")
    }
    assert rate["linear"] == pytest.approx([1 - t / 100 for t in range(100)])
    assert rate["constant"][:50] == rate["cyclic"][:50] == rate["linear"][:50]
    assert rate["constant"][50:] == pytest.approx([0.1] * 50)
    assert swag_schedule(60, Schedule("constant"), steps, 1.0) == 0.5
    assert rate["cyclic"][59::10] == pytest.approx([0.1] * 5)  # the last step before each snapshot
    assert rate["cyclic"][50:60] == rate["cyclic"][80:90] == sorted(rate["cyclic"][50:60], reverse=True)


def test_the_schedule_replaces_the_modules_own() -> None:
    class Scheduled(Classifier):
        def configure_optimizers(self) -> Any:
            optimizer = super().configure_optimizers()
            return [optimizer], [torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.0)]

    schedule = Schedule("anneal", 0.01, warmup=0.1, anneal_epochs=2)
    for module in (Classifier(), Scheduled()):
        fit(SWAG(start=5, schedule=schedule), module, max_epochs=10)
        steps = Steps(30, 15, 3, 3, 3)
        assert module.rates == pytest.approx([0.1 * swag_schedule(t, schedule, steps, 0.1) for t in range(30)])


# --- resuming --------------------------------------------------------------------------------------------------------


def assert_same(first: Any, second: Any) -> None:
    assert first.moments.state_dict().keys() == second.moments.state_dict().keys()
    for name, value in first.moments.state_dict().items():
        other = second.moments.state_dict()[name]
        assert torch.equal(value, other) if isinstance(value, Tensor) else value == other, name


@pytest.mark.parametrize(
    ("options", "steps"),
    [
        ({"start": 2, "rank": 2}, 12),
        ({"start": 5, "every": 2, "unit": "step"}, 6),
        ({"start": 4}, 6),
    ],
)
def test_a_resumed_run_ends_bit_for_bit_as_one_that_was_not_stopped(tmp_path: Path, options: dict, steps: int) -> None:
    schedule = Schedule("anneal", 0.01, anneal_epochs=2)

    def run(ckpt: Path | None = None) -> tuple[SWAG, Classifier]:
        swag, module = SWAG(**options, schedule=schedule), Classifier()
        checkpoints = ModelCheckpoint(tmp_path, filename="{step}", save_top_k=-1, every_n_train_steps=1)
        fit(swag, module, ckpt, max_epochs=6, default_root_dir=tmp_path, callbacks=[checkpoints])
        return swag, module

    whole, whole_module = run()
    checkpoint = tmp_path / f"step={steps}.ckpt"
    state = torch.load(checkpoint, weights_only=True)["callbacks"][whole.state_key]
    assert state["moments"][0]["count"] < whole.moments.count
    resumed, module = run(checkpoint)
    assert_same(whole, resumed)
    assert whole_module.rates[steps:] == module.rates
    assert all(torch.equal(v, module.state_dict()[k]) for k, v in whole_module.state_dict().items())


def test_several_coexist_and_other_snapshots_are_refused(tmp_path: Path) -> None:
    first, second = SWAG(start=1), SWAG(start=2, rank=3, predict=None)
    trainer = fit(first, max_epochs=4, default_root_dir=tmp_path, callbacks=[second])
    trainer.save_checkpoint(tmp_path / "both.ckpt")
    assert second.posterior is None
    again = [SWAG(start=1), SWAG(start=2, rank=3, predict=None)]
    fit(again[0], ckpt=tmp_path / "both.ckpt", max_epochs=4, default_root_dir=tmp_path, callbacks=again[1:])
    assert_same(first, again[0])
    assert_same(second, again[1])
    with pytest.raises(UsageError, match="as they were in training"):
        fit(SWAG(start=1, rank=7), ckpt=tmp_path / "both.ckpt", max_epochs=5, default_root_dir=tmp_path)


def test_a_new_training_forgets_the_snapshots_of_the_last() -> None:
    swag = SWAG(start=0)
    fit(swag, max_epochs=3)
    fit(swag, max_epochs=2)
    assert swag.moments.count == 2


# --- prediction on a foreign module ----------------------------------------------------------------------------------


def trained(**options: Any) -> tuple[SWAG, Classifier]:
    swag, module = SWAG(start=2, samples=5, logits_fn=logits_of, **options), Classifier()
    fit(swag, module, max_epochs=8)
    return swag, module


def evaluate(swag: L.Callback, module: L.LightningModule, batches: int = 2) -> None:
    L.Trainer(callbacks=[swag], enable_checkpointing=False, **QUIET).test(module, loader(batches), verbose=False)


def test_every_batch_sees_the_same_samples_and_the_weights_come_back() -> None:
    swag, module = trained()
    before = copy.deepcopy(module.state_dict())
    pointers = [p.data_ptr() for p in module.parameters()]
    evaluate(swag, module)
    draws = swag.posterior.sample(5, generator(0, "SWAG", "posterior"))
    other = copy.deepcopy(module.net)
    for batch, found in zip(loader(2), module.predicted, strict=True):
        for index in range(5):
            other[2].weight.data, other[2].bias.data = draws["net.2.weight"][index], draws["net.2.bias"][index]
            torch.testing.assert_close(found[index], other(batch[0]).double().log_softmax(-1))
    assert all(torch.equal(value, module.state_dict()[name]) for name, value in before.items())
    assert pointers == [p.data_ptr() for p in module.parameters()]
    assert owners(module) == []


def test_the_weights_come_back_when_a_step_raises() -> None:
    swag, module = trained()
    before = copy.deepcopy(module.state_dict())
    calls = []

    def failing(own: Classifier, batch: list[Tensor]) -> Tensor:
        calls.append(own.net[2].weight.detach().clone())
        if len(calls) == 3:
            raise ArithmeticError("of the module's own")
        return own.net(batch[0])

    swag.logits_fn = failing
    with pytest.raises(ArithmeticError):
        evaluate(swag, module)
    assert not torch.equal(calls[2], before["net.2.weight"])
    assert all(torch.equal(value, module.state_dict()[name]) for name, value in before.items())
    assert owners(module) == []


@pytest.mark.parametrize(("mode", "members"), [("full", 5), ("diag", 5), ("swa", 1), ("checkpoints", 3)])
def test_a_checkpoint_is_tested_with_its_snapshots(tmp_path: Path, mode: str, members: int) -> None:
    swag, module = trained(mode=mode, rank=3)
    trainer = L.Trainer(callbacks=[swag], max_epochs=8, default_root_dir=tmp_path, **QUIET)
    trainer.fit(module, loader())
    trainer.save_checkpoint(tmp_path / "end.ckpt")
    trainer.test(module, loader(2), verbose=False)
    fresh, other = SWAG(start=2, samples=5, logits_fn=logits_of, mode=mode, rank=3), Classifier()
    trainer = L.Trainer(callbacks=[fresh], default_root_dir=tmp_path, **QUIET)
    trainer.test(other, loader(2), ckpt_path=tmp_path / "end.ckpt", verbose=False)
    assert [len(log_probs) for log_probs in other.predicted] == [members] * 2
    assert all(torch.equal(a, b) for a, b in zip(module.predicted, other.predicted, strict=True))


# --- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scale": -1.0}, "scale is -1.0"),
        ({"rank": 1}, "rank K is 1"),
        ({"mode": "block"}, "mode is 'block'"),
        ({"preset": "paper"}, "preset is 'paper'"),
        ({"unit": "batch"}, "unit is 'batch'"),
        ({"device": "gpu"}, "device is 'gpu'"),
        ({"start": 1.0}, "start is 1.0"),
        ({"start": -1}, "start is -1"),
        ({"every": 0}, "every 0"),
        ({"samples": 0}, "samples is 0"),
        ({"predict": "mean"}, "predict is 'mean'"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message) as refusal:
        SWAG(**options)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("options", [{"kind": "cosine"}, {"swa_lr": -1.0}, {"warmup": 2}])
def test_schedules_that_make_no_sense_are_refused(options: dict) -> None:
    with pytest.raises(UsageError, match="schedule"):
        Schedule(**options)


@pytest.mark.parametrize(("options", "unit"), [({"start": 4}, "epoch"), ({"start": 13, "unit": "step"}, "step")])
def test_a_start_after_the_last_step_is_refused(options: dict, unit: str) -> None:
    module = Classifier()
    with pytest.raises(UsageError, match=f"start to collect at {unit}"):
        fit(SWAG(**options), module, max_epochs=4)
    assert module.rates == []  # nothing was trained


def test_too_few_snapshots_are_refused_at_test_time() -> None:
    swag, module = SWAG(start=3, logits_fn=logits_of), Classifier()
    fit(swag, module, max_epochs=4)
    assert swag.posterior is None
    with pytest.raises(UsageError, match="SWAG has 1 snapshots, mode full needs 2"):
        evaluate(swag, module)
    with pytest.raises(UsageError, match="SWAG has 0 snapshots"):
        evaluate(SWAG(logits_fn=logits_of), module)


def test_a_posterior_of_other_names_is_refused() -> None:
    swag, module = trained()
    module.extra = nn.Parameter(torch.zeros(2))
    with pytest.raises(UsageError, match="lacks parameter extra"):
        evaluate(swag, module)


def test_nan_in_a_snapshot_stops_the_run_and_names_the_parameter() -> None:
    swag = SWAG(start=1)
    with pytest.raises(RunError, match=r"snapshot 2 of net.2.weight is not finite"):
        fit(swag, Classifier(poison_at=7), max_epochs=6)
    assert swag.moments.count == 1
    assert swag.moments.mean.isfinite().all()


def test_sharding_strategies_are_refused_with_a_remedy() -> None:
    class FSDPStrategy:
        pass

    trainer = L.Trainer(**{**QUIET, "enable_checkpointing": False})
    trainer._accelerator_connector.strategy = FSDPStrategy()
    with pytest.raises(UsageError, match="a single device or ddp"):
        SWAG().setup(trainer, Classifier(), "fit")


def test_what_a_foreign_module_cannot_do_is_refused() -> None:
    swag, module = trained()
    swag.dropout = True
    with pytest.raises(UsageError, match="dropout"):
        evaluate(swag, module)
    swag.dropout, swag.predict = False, "linearised"
    with pytest.raises(UsageError, match="linearised"):
        evaluate(swag, module)
    with pytest.raises(UsageError, match="allowed: test and predict"):
        fit(SavedPosteriors(["x"]), max_epochs=1)
