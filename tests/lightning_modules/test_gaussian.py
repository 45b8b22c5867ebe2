"""What every method does that learns a Gaussian while training: resume, sample, save its posterior, read it back."""

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from safetensors.torch import load_file, save_file

from bayeslora import Backbone, BLoBModule, IVONModule, LoRA, LoRAModule, Optimisation, ScalaBLModule, UsageError
from bayeslora.callbacks.run_folder import RunFolder
from bayeslora.datamodules import JSONLDataModule
from bayeslora.lightning_modules.gaussian import GaussianModule
from bayeslora.posteriors.state import load_posterior
from tests.helpers.runs import assert_equal, trainer

METHODS: dict[str, tuple[type[GaussianModule], dict[str, Any]]] = {
    "blob": (BLoBModule, {"init_std": 0.2}),
    "blob_two": (BLoBModule, {"init_std": 0.2, "optimisers": "two"}),
    "bbb": (BLoBModule, {"init_std": 0.2, "factors": "AB"}),
    "scalabl": (ScalaBLModule, {"init_std": 0.2, "scale_learning_rate": 0.05}),
    "ivon": (IVONModule, {"ess": 200.0, "optimisation": Optimisation(0.3, warmup=0.0)}),
}
Trained = tuple[GaussianModule, L.Trainer]


def module(method: str, **changes: Any) -> GaussianModule:
    kind, options = METHODS[method]
    if kind is IVONModule:
        pytest.importorskip("ivon")
    given = {"backbone": Backbone("embedded"), "lora": LoRA(), "optimisation": Optimisation(1e-3), "seed": 1}
    return kind(**{**given, **options, **changes})


def batches(data: Path) -> JSONLDataModule:
    return JSONLDataModule(path=str(data), labels=40, batch_size=8, seed=1)


@pytest.fixture(scope="module", params=METHODS)
def trained(request: pytest.FixtureRequest, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """A run of a method, its folder, and a checkpoint of its end."""
    root = tmp_path_factory.mktemp(request.param)
    own, run = module(request.param, samples=4), trainer(root, callbacks=[RunFolder()], max_epochs=3)
    own.name = request.param
    run.fit(own, datamodule=batches(data))
    run.save_checkpoint(root / "end.ckpt")
    return own, run


def weights(own: L.LightningModule) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in own.trainable().items()}


@pytest.mark.parametrize("method", METHODS)
def test_resumed_run_ends_bit_for_bit(data: Path, tmp_path: Path, method: str) -> None:
    """From a checkpoint inside an epoch and a cycle of the KL; an optimiser's own state too, whatever it holds."""
    two = method.endswith("two")

    def run(root: Path, checkpoint: Path | None) -> dict:
        every = ModelCheckpoint(root, "{step}", every_n_train_steps=3, save_top_k=-1)
        options = {} if two else {"accumulate_grad_batches": 2, "gradient_clip_val": 1.0}
        own = trainer(root, max_epochs=3, callbacks=[every], **options)
        made = module(method, lora=LoRA(dropout=0.1))
        own.fit(made, datamodule=batches(data), ckpt_path=checkpoint, weights_only=True)
        own.save_checkpoint(root / "end.ckpt")
        return torch.load(root / "end.ckpt", weights_only=True)

    whole = run(tmp_path / "a", None)
    resumed = run(tmp_path / "b", tmp_path / "a" / "step=3.ckpt")
    assert whole["global_step"] == resumed["global_step"] == (12 if two else 6)
    for part in ("state_dict", "optimizer_states", "lr_schedulers", "bayeslora"):
        assert_equal(whole[part], resumed[part], part)
    assert len(whole["optimizer_states"]) == (2 if two else 1)


@torch.no_grad()
def test_samples_in_one_pass_are_the_posteriors_one_by_one(trained: Trained) -> None:
    own, run = trained
    batch = next(iter(run.datamodule.val_dataloader()))
    fanned, draws, kept = own.predictive(batch).logits, own.test_samples(), weights(own)
    assert (fanned.std(0) > 1e-4).all()
    for index in range(4):
        for name, value in draws.weights.items():
            own.trainable()[name].copy_(value[index])
        torch.testing.assert_close(own.answer_logits(batch)[0], fanned[index], atol=1e-4, rtol=1e-4)
    for name, value in kept.items():
        own.trainable()[name].copy_(value)


@torch.no_grad()
def test_posterior_is_saved_and_plain_peft_reads_its_mean(trained: Trained) -> None:
    own, run = trained
    folder = Path(run.default_root_dir) / "posterior"
    again = load_posterior(folder, own.model.base_fingerprint)
    assert_equal(again.state_dict(), own.posterior().state_dict())
    plain = LoRAModule(Backbone("embedded", adapter=str(folder)), samples=0)  # through peft's own loader
    plain.configure_model()
    assert_equal(weights(plain), dict(own.weight_sets()[0]))
    batch = next(iter(run.datamodule.val_dataloader()))
    assert torch.equal(plain.answer_logits(batch), own.answer_logits(batch))


@torch.no_grad()
def test_checkpoint_folder_and_what_is_served_predict_as_the_run_did(
    trained: Trained, data: Path, tmp_path: Path
) -> None:
    own, run = trained
    root, batch = Path(run.default_root_dir), next(iter(run.datamodule.val_dataloader()))
    read = module(own.name, samples=4)
    again = trainer(tmp_path)
    again.test(read, datamodule=batches(data), ckpt_path=root / "end.ckpt", verbose=False, weights_only=True)
    found = module(own.name, samples=4, backbone=Backbone("embedded", adapter=str(root / "posterior")))
    found.configure_model()
    arguments, kept = own.as_served()
    save_file(kept, tmp_path / "served.safetensors")
    served = type(own)(**arguments)
    served.configure_model()
    served.load_state_dict(load_file(tmp_path / "served.safetensors"))
    for other in (read, found, served):
        logits = other.eval().predictive(batch).logits
        torch.testing.assert_close(logits, own.predictive(batch).logits, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_an_adapter_without_a_spread_is_not_sampled(data: Path, tmp_path: Path, method: str) -> None:
    plain = LoRAModule(Backbone("embedded"), LoRA(), seed=1)
    trainer(tmp_path, callbacks=[RunFolder()], max_steps=1).fit(plain, datamodule=batches(data))
    adapter = Backbone("embedded", adapter=str(tmp_path / "posterior"))
    own = module(method, backbone=adapter)
    with pytest.raises(UsageError, match=r"no standard deviations to sample with; give .* the posterior/ folder of a"):
        trainer(tmp_path).test(own, datamodule=batches(data))
    assert_equal(dict(own.weight_sets()[0]), weights(plain))
    trainer(tmp_path).test(module(method, backbone=adapter, samples=0), datamodule=batches(data), verbose=False)
