"""SWAG on a stacked ensemble: every member has moments of its own, and is predicted with by samples of its own."""

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch

from bayeslora.callbacks.swag import SWAG
from bayeslora.cli import main
from bayeslora.datamodules.jsonl import JSONLDataModule
from bayeslora.lightning_modules.ensemble import LoRAEnsemble
from bayeslora.lightning_modules.member_states import STOPPED
from bayeslora.models.loading import Backbone, LoRA
from bayeslora.posteriors.mixture import Mixture
from bayeslora.posteriors.state import load_posterior
from bayeslora.posteriors.swag import SWAGPosterior
from bayeslora.results.prediction_file import read_predictions

METHODS = Path(__file__).parent.parent.parent / "bayeslora" / "configs" / "method"


class Fail(L.Callback):
    """Poisons a member's weights before an epoch."""

    def __init__(self, place: int, epoch: int) -> None:
        self.place, self.epoch = place, epoch

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        if trainer.current_epoch == self.epoch:
            next(iter(pl_module.member_parameters(self.place).values())).fill_(torch.nan)


class Save(L.Callback):
    """Writes a checkpoint after an optimiser step, inside an epoch."""

    def __init__(self, step: int, path: Path) -> None:
        self.step, self.path = step, path

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.path)


def fit(data: Path, members: Any, *callbacks: L.Callback, epochs: int = 4, **options: Any) -> tuple[SWAG, Any]:
    swag = SWAG(start=1, rank=3, samples=2)
    module = LoRAEnsemble(Backbone("embedded"), LoRA(dropout=0.1), members=members, learning_rate=5e-3, seed=3)
    trainer = L.Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        callbacks=[swag, *callbacks],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    datamodule = JSONLDataModule(path=str(data), labels=40, batch_size=16, seed=3)
    trainer.fit(module, datamodule=datamodule, **options)
    return swag, module


def test_every_member_has_the_moments_it_would_have_alone(data: Path) -> None:
    together, _ = fit(data, [0, 2])
    for place, member in enumerate([0, 2]):
        alone, _ = fit(data, [member])
        assert together.members[place].count == alone.moments.count == 3
        # Adam turns roundings of small gradients into moves of up to a step (5e-3): other kernels, other roundings
        torch.testing.assert_close(together.members[place].mean, alone.moments.mean, atol=1e-3, rtol=0)
        torch.testing.assert_close(together.members[place].m2, alone.moments.m2, atol=1e-5, rtol=5e-2)
    assert not torch.allclose(together.members[0].mean, together.members[1].mean, atol=1e-2)
    assert isinstance(together.posterior, Mixture)
    assert together.moments is None
    assert together.label == "MultiSWAG"


def test_a_member_that_stops_before_it_has_snapshots_is_named(data: Path) -> None:
    class Stop(L.Callback):
        """Stops a member before an epoch, as a patience of its own does."""

        def on_train_epoch_start(self, trainer: L.Trainer, pl_module: Any) -> None:
            if trainer.current_epoch == 2:
                pl_module.states.status[1] = STOPPED

    with pytest.warns(UserWarning, match="1 snapshots of member 7, mode full needs 2"):
        fit(data, [4, 7], Stop())


def test_a_member_that_fails_is_collected_no_more_and_left_out(data: Path) -> None:
    healthy, _ = fit(data, 3)
    with pytest.warns(UserWarning, match="member 1 has failed"):
        swag, module = fit(data, 3, Fail(1, 3))
    assert module.usable_members() == (0, 2)
    assert [moments.count for moments in swag.members] == [3, 2, 3]
    assert torch.equal(swag.members[2].mean, healthy.members[2].mean)
    assert len(swag.posterior.components) == 2


def test_collection_resumes_bit_for_bit(data: Path, tmp_path: Path) -> None:
    whole, _ = fit(data, 2, Save(7, tmp_path / "half.ckpt"))
    resumed, _ = fit(data, 2, ckpt_path=tmp_path / "half.ckpt", weights_only=True)
    for ours, theirs in zip(resumed.members, whole.members, strict=True):
        assert ours.count == theirs.count == 3
        for name in ("mean", "m2", "ring"):
            assert torch.equal(getattr(ours, name), getattr(theirs, name))


def test_members_and_samples_are_kept_apart_from_the_command_line(data: Path, tmp_path: Path) -> None:
    overlays = [f"--config={METHODS / name}.yaml" for name in ("ensemble", "swag")]
    options = ["--data=JSONLDataModule", f"--data.path={data}", "--data.labels=40"]
    trainer = ["--trainer.accelerator=cpu", "--trainer.max_epochs=4", f"--trainer.default_root_dir={tmp_path}"]
    quiet = ["--trainer.enable_progress_bar=false", "--trainer.logger=false", "--model.members=2"]
    quiet += ["--model.backbone.pretrained=embedded", "--model.optimisation.learning_rate=0.005"]
    for stage in ("fit", "test"):
        assert main([stage, *overlays, *options, *trainer, *quiet]) == 0
    posterior = load_posterior(tmp_path / "posterior")
    assert [type(component) for component in posterior.components] == [SWAGPosterior, SWAGPosterior]
    answers = next(iter(read_predictions(tmp_path / "test" / "predictions.parquet").datasets.values()))
    assert answers.n_members == 20
    first, second = answers.members[:, :10], answers.members[:, 10:]
    within = first.var(1).mean() + second.var(1).mean()
    assert (first.mean(1) - second.mean(1)).square().mean() > within
