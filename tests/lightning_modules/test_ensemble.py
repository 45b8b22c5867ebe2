"""A member is a function of (configuration, seed, its id), whoever trains beside it."""

from pathlib import Path

import lightning as L
import pyarrow.parquet as pq
import pytest
import torch

from bayeslora import Backbone, LoRAEnsemble, RunError, UsageError
from tests.helpers.ensembles import Double, datamodule, difference, fitted, module, trainer

EXACT = 1e-12


@pytest.fixture(scope="module")
def joint(tmp_path_factory: pytest.TempPathFactory, data: Path) -> LoRAEnsemble:
    return fitted(tmp_path_factory.mktemp("joint"), data, 3)


@pytest.mark.parametrize("member", [0, 2])
def test_a_member_is_the_same_alone(joint: LoRAEnsemble, tmp_path: Path, data: Path, member: int) -> None:
    solo = fitted(tmp_path, data, [member])
    assert difference(joint.member_parameters(member), solo.member_parameters(0)) < EXACT
    assert difference(joint.member_parameters(1), solo.member_parameters(0)) > 1e-3


def test_more_members_change_none_of_the_others(joint: LoRAEnsemble, tmp_path: Path, data: Path) -> None:
    later = fitted(tmp_path, data, [4, 1])
    assert difference(joint.member_parameters(1), later.member_parameters(1)) < EXACT


@pytest.mark.parametrize("changes", [{"members_per_pass": 2}, {"backbone": Backbone(gradient_checkpointing=True)}])
def test_chunked_or_recomputed_is_the_same(joint: LoRAEnsemble, tmp_path: Path, data: Path, changes: dict) -> None:
    other = fitted(tmp_path, data, 3, **changes)
    for index in range(3):
        assert difference(joint.member_parameters(index), other.member_parameters(index)) < EXACT


def test_accumulated_gradients_are_chunked_alike(tmp_path: Path, data: Path) -> None:
    run = {"accumulate_grad_batches": 2}
    whole, chunked = (fitted(tmp_path, data, 2, run=run, members_per_pass=size) for size in (None, 1))
    assert difference(dict(whole.trainable()), dict(chunked.trainable())) < EXACT


def test_single_precision_agrees_to_rounding(tmp_path: Path, data: Path) -> None:
    together = fitted(tmp_path, data, 2, LoRAEnsemble)
    alone = fitted(tmp_path, data, [1], LoRAEnsemble)
    assert difference(together.member_parameters(1), alone.member_parameters(0)) < 1e-4


class MeanLoss(Double):
    """Wrong: the mean over members in place of the sum."""

    def member_losses(self, places, batches):  # type: ignore[no-untyped-def]
        return super().member_losses(places, batches) / len(places)


class CommonClip(Double):
    """Wrong: one norm over all members."""

    def configure_gradient_clipping(self, optimizer, gradient_clip_val=None, gradient_clip_algorithm=None):  # type: ignore[no-untyped-def]
        self.clip_gradients(optimizer, gradient_clip_val, "norm")


@pytest.mark.parametrize(
    ("kind", "run", "least"),
    [
        (MeanLoss, {"gradient_clip_val": 3.0}, 1e-4),
        (CommonClip, {}, 1e-3),
        (MeanLoss, {"gradient_clip_val": None}, 1e-8),
    ],
)
def test_coupled_members_are_told_apart(tmp_path: Path, data: Path, kind: type, run: dict, least: float) -> None:
    """Negative controls: the comparison sees a mean loss, a common clip, and Adam's epsilon under a mean loss."""
    wrong = fitted(tmp_path, data, 3, kind, run=run)
    right = fitted(tmp_path, data, [1], run=run)
    assert difference(wrong.member_parameters(1), right.member_parameters(0)) > least


def test_members_start_as_the_base_and_drift_apart(joint: LoRAEnsemble, data: Path, tmp_path: Path) -> None:
    fresh = module(3)
    fresh.configure_model()
    source = datamodule(data)
    source.setup("test")
    batch = next(iter(source.test_dataloader()[0]))
    logits = fresh.answer_logits(batch)
    with fresh.model.network.disable_adapter():  # type: ignore[operator]
        base = fresh.model(batch).logits
    assert logits.shape[0] == 3
    torch.testing.assert_close(logits, base.expand_as(logits), rtol=0, atol=1e-14)
    assert (fresh.predictive(batch).epistemic < 1e-12).all()
    assert (joint.predictive(batch).epistemic > 1e-6).any()
    first, second = fresh.member_parameters(0), fresh.member_parameters(1)
    assert all(not torch.equal(first[name], second[name]) for name in first if ".lora_A." in name)


def test_randomness_can_be_shared(tmp_path: Path, data: Path) -> None:
    apart = module(2, share_init=True)
    apart.configure_model()
    assert difference(apart.member_parameters(0), apart.member_parameters(1)) == 0
    same = fitted(tmp_path, data, 2, share_init=True, share_data_order=True, dropout=0.0)
    assert difference(same.member_parameters(0), same.member_parameters(1)) < EXACT
    for shared in ({"share_init": True}, {"share_data_order": True}):
        other = fitted(tmp_path, data, 2, dropout=0.0, **shared)
        assert difference(other.member_parameters(0), other.member_parameters(1)) > 1e-3
    noise = fitted(tmp_path, data, 2, share_init=True, share_data_order=True)
    assert difference(noise.member_parameters(0), noise.member_parameters(1)) > 1e-3


def test_samples_of_others_are_evaluated(joint: LoRAEnsemble, data: Path) -> None:
    """SWAG and Laplace bring S unstacked samples; the members' own come out the same as by default."""
    from bayeslora.types import Samples

    source = datamodule(data)
    source.setup("test")
    batch = next(iter(source.test_dataloader()[0]))
    own = joint.member_parameters(2)
    again = joint.sampled(batch, Samples({name: value.expand(2, *value.shape) for name, value in own.items()}))
    torch.testing.assert_close(again.log_probs, joint.predictive(batch).log_probs[[2, 2]], atol=1e-12, rtol=0)
    with pytest.raises(UsageError, match="weights for every parameter"):
        joint.sampled(batch, Samples(draws=torch.arange(3)))


def test_resumed_is_the_same_bit_for_bit(tmp_path: Path, data: Path) -> None:
    whole = fitted(tmp_path, data, 2, patience=3)

    class Interrupted(Double):
        def on_train_batch_end(self, *_: object) -> None:
            if self.trainer.global_step == 6:
                self.trainer.save_checkpoint(tmp_path / "cut.ckpt")

    fitted(tmp_path, data, 2, Interrupted, patience=3)
    resumed = fitted(tmp_path, data, 2, patience=3, ckpt=tmp_path / "cut.ckpt")
    assert difference(dict(whole.trainable()), dict(resumed.trainable())) == 0
    assert resumed.states.best_nll == whole.states.best_nll
    with pytest.raises(UsageError, match=r"holds members \[0, 1\].*\[0, 5\]"):
        fitted(tmp_path, data, [0, 5], ckpt=tmp_path / "cut.ckpt")


@pytest.mark.parametrize("arguments", [{"members": 0}, {"members": [1, 1]}, {"l2_product": -1.0}, {"patience": 0}])
def test_bad_arguments(arguments: dict) -> None:
    with pytest.raises(UsageError, match=next(iter(arguments))):
        LoRAEnsemble(**arguments)


def test_data_parallel_training_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ensemble = module(2)
    ensemble._trainer = trainer(tmp_path)
    monkeypatch.setattr(L.Trainer, "world_size", 2)
    with pytest.raises(UsageError, match=r"devices 1.*bayeslora ensemble"):
        ensemble.configure_model()


class Poisoned(Double):
    """Member 1 meets a loss, a gradient or a validation logit that is no number."""

    where = "loss"

    def member_losses(self, places, batches):  # type: ignore[no-untyped-def]
        losses = super().member_losses(places, batches)
        if self.global_step == 3 and self.where == "loss" and 1 in places:
            losses = losses * torch.where(torch.tensor(places) == 1, torch.nan, 1.0)
        if self.global_step == 3 and self.where == "gradient" and 1 in places:
            losses = losses.clone()
            losses.register_hook(lambda g: torch.where(torch.tensor(places) == 1, torch.nan, 1.0) * g)
        return losses

    def validation_step(self, batch, batch_idx):  # type: ignore[no-untyped-def]
        if self.where == "validation":
            with torch.no_grad():
                next(iter(self.trainable().values()))[1] = torch.nan
        super().validation_step(batch, batch_idx)


class PoisonedGradient(Poisoned):
    where = "gradient"


class PoisonedValidation(Poisoned):
    where = "validation"


@pytest.mark.parametrize("kind", [Poisoned, PoisonedGradient, PoisonedValidation])
def test_a_failing_member_leaves_the_others_bit_for_bit(
    joint: LoRAEnsemble, tmp_path: Path, data: Path, kind: type[LoRAEnsemble]
) -> None:
    broken = fitted(tmp_path, data, 3, kind)
    assert broken.states.status == ["training", "failed", "training"]
    assert "not finite" in broken.states.reason[1]
    for index in (0, 2):
        assert difference(joint.member_parameters(index), broken.member_parameters(index)) == 0
    assert len(broken.posterior().components) == 2
    source = datamodule(data)
    source.setup("test")
    assert len(broken.predictive(next(iter(source.test_dataloader()[0]))).weights) == 2


def test_every_member_failing_stops_the_run(tmp_path: Path, data: Path) -> None:
    class AllBroken(Double):
        def member_losses(self, places, batches):  # type: ignore[no-untyped-def]
            return super().member_losses(places, batches) * torch.nan

    with pytest.raises(RunError, match=r"every member has failed.*loss at step 0"):
        fitted(tmp_path, data, 2, AllBroken)


def test_a_member_out_of_patience_goes_back_to_its_best_and_rests(tmp_path: Path, data: Path) -> None:
    """A member told apart by its validation: weights, and the state of the optimiser, stay what they are."""
    seen: dict[int, tuple] = {}

    class Watched(Double):
        def on_validation_epoch_end(self) -> None:
            if not self.trainer.sanity_checking:
                best = 1.0 if self.current_epoch == 0 else 2.0
                self.states.validated(1, best, self.trainable())
                self._note(self.current_epoch)

        def _note(self, epoch: int) -> None:
            optimizer = self.optimizers(use_pl_optimizer=False)
            moments = [value["exp_avg"][1].clone() for value in optimizer.state.values()]
            weights = {name: value.clone() for name, value in self.member_parameters(1).items()}
            seen[epoch] = (weights, moments, {n: v.clone() for n, v in self.member_parameters(0).items()})

    ensemble = fitted(tmp_path, data, 2, Watched, patience=1, run={"max_epochs": 4})
    assert ensemble.states.status == ["training", "stopped"]
    assert ensemble.active_members() == (0,)
    assert difference(seen[0][0], seen[3][0]) == 0
    assert all(torch.equal(a, b) for a, b in zip(seen[1][1], seen[3][1], strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(seen[0][1], seen[1][1], strict=True))
    assert difference(seen[2][2], seen[3][2]) > 0


def test_patience_stops_members_by_their_own_likelihood(tmp_path: Path, data: Path) -> None:
    run = {"max_epochs": 12}
    both = fitted(tmp_path, data, 2, patience=2, learning_rate=2e-2, run=run)
    alone = fitted(tmp_path, data, [1], patience=2, learning_rate=2e-2, run=run)
    assert "stopped" in both.states.status
    assert alone.states.status[0] == both.states.status[1]
    assert difference(both.member_parameters(1), alone.member_parameters(0)) < 1e-9


def test_a_run_whose_members_have_all_stopped_ends(tmp_path: Path, data: Path) -> None:
    class Impatient(Double):
        def on_validation_epoch_end(self) -> None:
            for place in self.active_members():
                self.states.validated(place, 1.0, self.trainable())
            self._stop_if_none_trains()

    ensemble = fitted(tmp_path, data, 2, Impatient, patience=1, run={"max_epochs": 9})
    assert ensemble.trainer.current_epoch < 4
    assert ensemble.states.status == ["stopped", "stopped"]


def test_validation_reports_members_and_ensemble(tmp_path: Path, data: Path) -> None:
    """Probabilities are averaged: the ensemble's likelihood is at least the mean of its members' (Jensen)."""
    metrics = fitted(tmp_path, data, 3).trainer.callback_metrics
    own = [float(metrics[f"m{member}/nll"]) for member in range(3)]
    assert float(metrics["val/nll"]) < sum(own) / 3
    assert len(set(own)) == 3
    assert "val/accuracy" in metrics


def test_the_rate_may_stay_where_it_is(tmp_path: Path, data: Path) -> None:
    rates: list[float] = []

    class Watched(Double):
        def on_train_batch_end(self, *_: object) -> None:
            rates.append(self.trainer.optimizers[0].param_groups[0]["lr"])

    fitted(tmp_path, data, 1, Watched, decay=False, warmup=0.25)
    assert rates == pytest.approx([0.0025, *[0.005] * 7])


def test_uncertainty_over_the_whole_vocabulary_is_computed_on_request(
    joint: LoRAEnsemble, tmp_path: Path, data: Path
) -> None:
    from bayeslora import Predictions
    from bayeslora.callbacks import VocabularyUncertainty
    from bayeslora.metrics.support import answers_with_rest
    from bayeslora.results.prediction_file import read_predictions

    trainer(tmp_path, callbacks=[VocabularyUncertainty(), Predictions()]).test(joint, datamodule=datamodule(data))
    (answers,) = read_predictions(tmp_path / "test" / "predictions.parquet").datasets.values()
    whole = pq.read_table(tmp_path / "test" / "vocabulary.parquet").to_pylist()
    assert [row["row"] for row in whole] == list(range(40))
    cells = answers_with_rest(answers)
    for measure in ("total", "aleatoric", "epistemic"):
        assert all(row[measure] >= value - 1e-6 for row, value in zip(whole, getattr(cells, measure), strict=True))
    assert max(row["total"] for row in whole) > float(cells.total.max())


def test_streams_of_runs_and_members_never_meet(data: Path) -> None:
    """Not seed + member: member 2 of run 1 has nothing in common with member 1 of run 2, its order not either."""
    starts, draws, orders = [], [], []
    for seed in (1, 2):
        ensemble = module(3, seed=seed)
        ensemble.configure_model()
        source = datamodule(data)
        source.seed, source.members = seed, ensemble.member_ids
        source.setup("fit")
        orders += [
            tuple(row for batch in loader.batch_sampler for row in batch) for loader in source.train_dataloader()
        ]
        starts += [
            own["base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"] for own in ensemble.weight_sets()
        ]
        for ensemble._micro_step in range(3):
            noise = ensemble._noisy([0, 1, 2], dict(ensemble.trainable()))
            draws += [(noise.seed, draw) for draw in noise.draws.tolist()]
    assert len(set(draws)) == 18
    assert len(set(orders)) == 6
    assert all(not torch.equal(a, b) for i, a in enumerate(starts) for b in starts[:i])
    source.members = (1,)
    assert tuple(row for batch in source.train_dataloader().batch_sampler for row in batch) == orders[4]
