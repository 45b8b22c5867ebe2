"""What SWAG predicts on modules of the package: one pass of all samples, linearised, and mixtures of finished runs."""

import copy
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch.utils.data import DataLoader

from bayeslora.callbacks.posterior import SavedPosteriors
from bayeslora.callbacks.swag import SWAG
from bayeslora.errors import UsageError
from bayeslora.lightning_modules.lora import LoRAModule
from bayeslora.models.loading import Backbone, LoRA
from bayeslora.posteriors.mixture import Mixture
from bayeslora.posteriors.state import save_posterior
from bayeslora.posteriors.swag import SWAGPosterior
from bayeslora.streams import generator
from bayeslora.types import Samples
from tests.helpers.batches import label_token_batch

QUIET: dict[str, Any] = {
    "accelerator": "cpu",
    "logger": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}


def batches(n: int = 2) -> DataLoader:
    return DataLoader([label_token_batch([9, 5, 7], [4, 3, 4], seed) for seed in range(n)], batch_size=None)


def lora_module(llama: str, **options: Any) -> LoRAModule:
    lora = LoRA(r=2, alpha=4, dropout=0.2, target_modules=["q_proj", "v_proj", "lm_head"])
    return LoRAModule(Backbone(llama, **options), lora, learning_rate=0.02)


@pytest.fixture(scope="module")
def tuned(llama: str) -> tuple[SWAG, LoRAModule]:
    swag, module = SWAG(start=1, samples=4), lora_module(llama)
    trainer = L.Trainer(callbacks=[swag], max_epochs=5, enable_checkpointing=False, **QUIET)
    trainer.fit(module, batches(3), batches(1))
    assert "val_swa/nll" in trainer.callback_metrics
    return swag, module


def predictions(callback: L.Callback, module: LoRAModule) -> list[Any]:
    trainer = L.Trainer(callbacks=[callback], enable_checkpointing=False, inference_mode=False, **QUIET)
    return trainer.predict(module, batches())


def test_one_pass_equals_one_sample_after_another(tuned: tuple[SWAG, LoRAModule], monkeypatch: Any) -> None:
    swag, module = tuned
    before = {name: p.detach().clone() for name, p in module.trainable().items()}
    fanned = predictions(swag, module)
    monkeypatch.setattr("bayeslora.callbacks.posterior._site_parameters", lambda module: set())
    single = predictions(swag, module)
    for one, other in zip(fanned, single, strict=True):
        assert len(one.weights) == 4
        torch.testing.assert_close(one.log_probs, other.log_probs, atol=1e-5, rtol=1e-4)
        assert one.epistemic.min() > 0
    assert all(torch.equal(before[name], p) for name, p in module.trainable().items())


def test_dropout_adds_its_own_spread(tuned: tuple[SWAG, LoRAModule]) -> None:
    swag, module = tuned
    mean = copy.copy(swag)
    mean.mode, mean.dropout = "swa", True
    assert mean.label == "SWA_dropout"
    (first, _), (again, _) = predictions(mean, module), predictions(mean, module)
    assert first.epistemic.min() > 0  # the same weights in all four, but not the same masks
    assert torch.equal(first.log_probs, again.log_probs)


def test_linearised_prediction_is_that_of_the_mean_with_its_covariance(tuned: tuple[SWAG, LoRAModule]) -> None:
    swag, module = tuned
    linearised = copy.copy(swag)
    linearised.predict = "linearised"
    mean = copy.copy(swag)
    mean.mode = "swa"
    for law, point in zip(predictions(linearised, module), predictions(mean, module), strict=True):
        contrasts = point.logits[0, :, 1:] - point.logits[0, :, :1]
        torch.testing.assert_close(law.gaussian.mean, contrasts, atol=1e-4, rtol=1e-4)
        assert law.gaussian.cov.diagonal(dim1=-2, dim2=-1)[:, :2].min() > 0


def test_a_quantised_base_is_left_out(llama: str) -> None:
    pytest.importorskip("bitsandbytes")
    swag, module = SWAG(start=0, samples=2), lora_module(llama, quantization="4bit")
    trainer = L.Trainer(callbacks=[swag], max_epochs=2, enable_checkpointing=False, **QUIET)
    trainer.fit(module, batches(2))
    assert all(".lora_" in name for name in swag.moments.layout.shapes)
    assert swag.moments.nbytes == (2 + 20) * 4 * sum(p.numel() for p in module.trainable().values())
    assert len(predictions(swag, module)[0].weights) == 2


def test_finished_runs_are_predicted_with_as_a_mixture(tuned: tuple[SWAG, LoRAModule], tmp_path: Path) -> None:
    swag, module = tuned
    folders = [str(tmp_path / name) for name in ("a", "b")]
    save_posterior(swag.posterior, folders[0], module.model.adapter_config, module.model.base_fingerprint)
    shifted = SWAGPosterior.from_state_dict(swag.posterior.state_dict())
    shifted._mean.add_(0.05)
    save_posterior(shifted, folders[1], module.model.adapter_config, module.model.base_fingerprint)
    multi = SavedPosteriors(folders, samples=3)
    found = predictions(multi, module)[0]
    assert multi.label == "multiswag"
    assert len(found.weights) == 6
    bank = generator(0, "multiswag", "posterior")
    own = [p.sample(3, bank) for p in multi.posterior.components]
    batch = next(iter(batches()))
    wanted = [module.sampled(batch, Samples(draws)).log_probs for draws in own]
    torch.testing.assert_close(found.log_probs, torch.cat(wanted), atol=1e-5, rtol=1e-4)
    (tmp_path / "a" / "posterior.json").unlink()
    with pytest.raises(UsageError, match="holds no posterior"):
        predictions(SavedPosteriors(folders), module)


def test_members_of_a_mixture_that_a_run_left_weigh_the_same(tuned: tuple[SWAG, LoRAModule], tmp_path: Path) -> None:
    swag, module = tuned
    kept = module.model.adapter_config, module.model.base_fingerprint
    save_posterior(Mixture([swag.posterior] * 3), tmp_path / "three", *kept)
    save_posterior(swag.posterior, tmp_path / "one", *kept)
    multi = SavedPosteriors([str(tmp_path / "three"), str(tmp_path / "one")], samples=4)
    assert len(predictions(multi, module)[0].weights) == 12  # six of each, so two of every member; not 2, 1 and 1
