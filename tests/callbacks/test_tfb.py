"""TFB as a callback: on trained adapters, on unlabelled anchors, in run folders, from the command line."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import lightning as L
import pytest
import torch

from bayeslora import TFB, Backbone, BLoBModule, CLoRAModule, LoRA, LoRAModule, Predictions, UsageError
from bayeslora.callbacks.run_folder import RunFolder
from bayeslora.callbacks.tfb_search import Anchors
from bayeslora.datamodules import JSONLDataModule
from bayeslora.posteriors.state import load_posterior
from bayeslora.posteriors.tfb import TFBPosterior
from bayeslora.results.prediction_file import read_predictions
from tests.helpers.runs import assert_equal, trainer

OPTIONS = {"tolerance": 0.02, "anchors": 32, "samples": 4}


def batches(data: Path, **changes: object) -> JSONLDataModule:
    return JSONLDataModule(**{"path": str(data), "labels": 40, "batch_size": 8, "seed": 1, **changes})


@pytest.fixture(scope="module")
def finished(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder of plain fine-tuning."""
    root = tmp_path_factory.mktemp("finished")
    module = LoRAModule(Backbone("embedded"), LoRA(), learning_rate=3e-3, seed=1)
    trainer(root, max_epochs=4, callbacks=[RunFolder()]).fit(module, datamodule=batches(data))
    return root


def tuned(finished: Path, **changes: object) -> LoRAModule:
    return LoRAModule(Backbone("embedded", adapter=str(finished / "posterior"), **changes), seed=1)


def found(root: Path, module: L.LightningModule, datamodule: L.LightningDataModule, **options: object) -> TFB:
    tfb = TFB(**{**OPTIONS, **options})
    trainer(root, callbacks=[tfb]).test(module, datamodule=datamodule, verbose=False)
    return tfb


@pytest.mark.parametrize("source", ["train", "validation"])
def test_sigma_is_accepted_and_no_larger_one_is(finished: Path, data: Path, tmp_path: Path, source: str) -> None:
    module = tuned(finished)
    tfb = found(tmp_path, module, batches(data), source=source)
    posterior = tfb.posterior
    sigma = set(posterior.sigma.values())
    assert len(sigma) == 1
    assert posterior.record["change"] <= 0.02
    assert posterior.record["n_anchors"] == (32 if source == "train" else 8)
    # the criterion itself, from the posterior alone
    datamodule = batches(data)
    loader = datamodule.train_eval_dataloader() if source == "train" else datamodule.val_dataloader()

    def loss(factor: float) -> float:
        wider = posterior.scaled({name: factor * value for name, value in posterior.sigma.items()})
        predict, values = tfb._predictor(module, wider), []
        for batch in loader:
            label = module.answer_logits(batch)[0].argmax(-1)
            values.append(predict(batch).nll(label))
        return torch.cat(values).mean().item()

    with torch.no_grad():
        plain = loss(0.0)
        assert plain == pytest.approx(posterior.record["loss"], rel=1e-4)
        assert abs(loss(1.0) - plain) / plain <= 0.0201
        assert abs(loss(2.0) - plain) / plain > 0.02


def test_labels_are_not_looked_at(finished: Path, data: Path, tmp_path: Path) -> None:
    class Blind(JSONLDataModule):
        def train_eval_dataloader(self) -> list:
            batches = super().train_eval_dataloader()
            return [dataclasses.replace(b, label=torch.full_like(b.label, -100)) for b in batches]

    blind = Blind(path=str(data), labels=40, batch_size=8, seed=1)
    both = [found(tmp_path / str(i), tuned(finished), d) for i, d in enumerate((batches(data), blind))]
    assert both[0].posterior.sigma == both[1].posterior.sigma


def test_a_scale_for_every_layer(finished: Path, data: Path, tmp_path: Path) -> None:
    posterior = found(tmp_path, tuned(finished), batches(data), per_layer=True, iterations=2).posterior
    layers = {name.split(".layers.")[1][0]: value for name, value in posterior.sigma.items()}
    assert len(layers) == len(set(layers.values())) == len(set(posterior.sigma.values())) == 2
    assert posterior.record["change"] <= 0.02


def test_a_search_that_was_killed_goes_on(
    finished: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    whole = found(tmp_path / "whole", tuned(finished), batches(data)).posterior
    assert "about 7 passes over 32 questions with 4 samples each" in capsys.readouterr().out
    measure, passes = Anchors.loss, []

    def loss(self: Anchors, *args: object) -> float:
        if len(passes) == 2:
            raise KeyboardInterrupt
        passes.append(measure(self, *args))
        return passes[-1]

    with monkeypatch.context() as killed:
        killed.setattr(Anchors, "loss", loss)
        with pytest.raises((KeyboardInterrupt, SystemExit)):
            found(tmp_path / "killed", tuned(finished), batches(data))
    later: list[float] = []
    monkeypatch.setattr(Anchors, "loss", lambda self, *args: later.append(measure(self, *args)) or later[-1])
    assert found(tmp_path / "killed", tuned(finished), batches(data)).posterior.sigma == whole.sigma
    alone: list[float] = []
    monkeypatch.setattr(Anchors, "loss", lambda self, *args: alone.append(measure(self, *args)) or alone[-1])
    found(tmp_path / "alone", tuned(finished), batches(data))
    assert [*passes, *later] == alone


def test_predicts_with_its_bank_and_says_so(finished: Path, data: Path, tmp_path: Path) -> None:
    tfb, predictions = TFB(**OPTIONS), Predictions()
    trainer(tmp_path, callbacks=[tfb, predictions]).test(tuned(finished), datamodule=batches(data), verbose=False)
    written = read_predictions(tmp_path / "test" / "predictions.parquet")
    answers = next(iter(written.datasets.values()))
    assert answers.members.shape[1] == 4
    assert (answers.members.std(1) > 0).any()


def test_a_kept_fit_is_used_again_only_for_the_same_adapter_data_and_options(
    finished: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = found(tmp_path, tuned(finished), batches(data)).posterior
    kept = load_posterior(tmp_path / "posterior" / "tfb")
    assert kept.sigma == first.sigma
    module = tuned(finished)
    module.configure_model()
    assert_equal(kept.mean(), dict(module.trainable()))  # plain peft loads the adapter as it was
    searches = []
    search = TFB._search
    monkeypatch.setattr(TFB, "_search", lambda self, *args: searches.append(1) or search(self, *args))
    found(tmp_path, tuned(finished), batches(data))
    assert not searches
    found(tmp_path, tuned(finished), batches(data), tolerance=0.05)
    assert len(searches) == 1
    next(iter(module.trainable().values())).data.add_(0.01)
    found(tmp_path, module, batches(data), tolerance=0.05)
    assert len(searches) == 2
    found(tmp_path, module, batches(data, labels=36), tolerance=0.05)
    assert len(searches) == 3


def test_after_training_the_run_keeps_it(data: Path, tmp_path: Path) -> None:
    tfb = TFB(**OPTIONS)
    run = trainer(tmp_path, max_epochs=2, callbacks=[tfb, RunFolder()])
    module = LoRAModule(Backbone("embedded"), LoRA(), learning_rate=3e-3, seed=1)
    run.fit(module, datamodule=batches(data))
    kept = load_posterior(tmp_path / "posterior", module.model.base_fingerprint)
    assert isinstance(kept, TFBPosterior)
    assert module.model.training
    assert kept.sigma == tfb.posterior.sigma
    again = TFB(**OPTIONS)
    trainer(tmp_path, callbacks=[again]).test(module, datamodule=batches(data), verbose=False)
    assert again.posterior.sigma == kept.sigma
    assert not (tmp_path / "posterior" / "tfb").exists()


@pytest.mark.parametrize("kind", [BLoBModule, CLoRAModule])
def test_on_the_mean_of_blob_and_of_c_lora(data: Path, tmp_path: Path, kind: type) -> None:
    module = kind(backbone=Backbone("embedded"), lora=LoRA(), learning_rate=3e-3, samples=0, seed=1)
    run = trainer(tmp_path, max_epochs=2, callbacks=[RunFolder()])
    run.fit(module, datamodule=batches(data))
    kept = load_posterior(tmp_path / "posterior")
    direct = found(tmp_path, module, batches(data)).posterior  # C-LoRA's own function, with noise on A
    folder = found(tmp_path / "folder", tuned(tmp_path), batches(data)).posterior  # its mean as a plain adapter
    for posterior in (direct, folder):
        assert posterior.record["change"] <= 0.02
        assert min(posterior.sigma.values()) > 0
    assert all(name.endswith((".lora_A.weight", ".lora_B.weight")) for name in folder.mean())
    if kind is BLoBModule:
        assert direct.sigma == folder.sigma
    assert load_posterior(tmp_path / "posterior").family == kept.family  # what training found is still there


@pytest.mark.parametrize("quantization", ["4bit", "8bit"])
def test_quantised_bases_are_sampled_alike(finished: Path, data: Path, tmp_path: Path, quantization: str) -> None:
    pytest.importorskip("bitsandbytes")
    module = tuned(finished, quantization=quantization)
    tfb = found(tmp_path, module, batches(data), iterations=1)
    batch = next(iter(batches(data).train_eval_dataloader()))
    with torch.no_grad():
        noisy, still = (tfb._predictor(module, p)(batch) for p in (tfb.posterior, tfb.posterior.scaled(0.0)))
        plain = module.predictive(batch)
    assert (noisy.log_probs.std(0) > 0).any()
    torch.testing.assert_close(still.log_probs, plain.log_probs.expand_as(still.log_probs), atol=1e-5, rtol=1e-5)


def test_an_untrained_adapter_bears_any_noise(data: Path, tmp_path: Path) -> None:
    module = LoRAModule(Backbone("embedded"), LoRA(), seed=1)
    with pytest.warns(UserWarning, match="upper bound"):
        posterior = found(tmp_path, module, batches(data), anchors=8).posterior
    assert set(posterior.sigma.values()) == {0.015}
    assert posterior.record["change"] < 1e-6


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"source": "test"}, "train, validation"),
        ({"tolerance": 0.0}, "tolerance is 0"),
        ({"bounds": (0.2, 0.1)}, "rising"),
        ({"predict": None}, "samples, linearised"),
        ({"anchors": 0}, "anchors 0"),
    ],
)
def test_bad_options(options: dict, match: str) -> None:
    with pytest.raises(UsageError, match=match):
        TFB(**options)


def test_a_search_that_fails_leaves_every_part_in_its_mode(tmp_path: Path) -> None:
    def broken() -> Iterator[None]:
        yield from ()
        raise RuntimeError("the disk is gone")

    module = LoRAModule(Backbone("embedded"), LoRA(), seed=1)
    module.configure_model()
    module.train()
    module.val_nll.eval()  # a part that is frozen in the mode of its own
    modes = [part.training for part in module.modules()]
    with pytest.raises(RuntimeError, match="disk"):
        TFB(loader=broken())._find(trainer(tmp_path), module)
    assert [part.training for part in module.modules()] == modes
