"""A predictor made of a base, an adapter and a posterior says what the run said that made them."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch

from bayeslora import (
    SWAG,
    TFB,
    BLoBModule,
    CLoRAModule,
    Laplace,
    LoRAEnsemble,
    LoRAModule,
    Predictions,
    Predictor,
    UsageError,
    load_posterior,
)
from bayeslora.callbacks.run_folder import RunFolder
from bayeslora.datamodules import SyntheticDataModule
from bayeslora.lightning_modules.multiple_choice import MultipleChoiceModule
from bayeslora.models.loading import Backbone, LoRA
from bayeslora.posteriors.point import Point
from bayeslora.posteriors.state import save_posterior
from bayeslora.results.prediction_file import read_predictions

SMALL = LoRA(r=2, target_modules=["q_proj", "v_proj"])
MADE: dict[str, tuple[Callable[..., MultipleChoiceModule], Sequence[L.Callback], str | None, dict[str, Any]]] = {
    "mle": (LoRAModule, [], None, {}),
    "swag": (LoRAModule, [SWAG(start=0, unit="step", samples=3)], "posterior", {"samples": 3}),
    "laplace": (LoRAModule, [Laplace(precision=1.0)], "posterior", {}),
    "tfb": (LoRAModule, [TFB(anchors=8, iterations=1)], "posterior", {}),
    "blob": (BLoBModule, [], "posterior", {}),
    "ensemble": (lambda **own: LoRAEnsemble(members=2, **own), [], "posterior", {}),
}


def run(root: Path, make: Callable[..., MultipleChoiceModule], callbacks: Sequence[L.Callback]) -> SyntheticDataModule:
    """Train two steps and test; the run's data."""
    data = SyntheticDataModule(labels=20, batch_size=8, eval_batch_size=16, max_test=12)
    trainer = L.Trainer(
        max_steps=2, accelerator="cpu", default_root_dir=root, callbacks=[*callbacks, RunFolder(), Predictions()],
        logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        inference_mode=False, num_sanity_val_steps=0, limit_val_batches=0,
    )  # fmt: skip
    module = make(lora=SMALL)
    trainer.fit(module, datamodule=data)
    trainer.test(module, datamodule=data, verbose=False)
    return data


@pytest.mark.parametrize("name", MADE)
def test_adapter_and_posterior_say_what_their_run_said(name: str, tmp_path: Path) -> None:
    make, callbacks, posterior, settings = MADE[name]
    data = run(tmp_path, make, callbacks)
    adapter = tmp_path / "posterior" / ("000" if name == "ensemble" else "")
    where = None if posterior is None else tmp_path / posterior
    predictor = Predictor.from_adapter("embedded", adapter, posterior=where, device="cpu", **settings)
    found = predictor.predict(predictor.prepare(data.questions("synthetic")))
    own = read_predictions(tmp_path / "test" / "predictions.parquet").datasets["synthetic"]
    torch.testing.assert_close(found.probs, own.probs.double(), atol=1e-6, rtol=0)
    torch.testing.assert_close(found.epistemic, own.epistemic, atol=1e-5, rtol=0)
    if where is not None:
        again = Predictor.from_adapter("embedded", adapter, posterior=load_posterior(where), device="cpu", **settings)
        assert torch.equal(again.predict(again.prepare(data.questions("synthetic"))).probs, found.probs)


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A peft adapter as from elsewhere: nothing beside it, and no fingerprint of its base."""
    module = LoRAModule(lora=SMALL)
    module.configure_model()
    with torch.no_grad():
        for parameter in module.trainable().values():
            parameter.add_(0.05)
    folder = tmp_path_factory.mktemp("adapter")
    save_posterior(module.posterior(), folder, module.model.adapter_config)
    for name in ("posterior.json", "posterior.safetensors"):
        (folder / name).unlink()
    return folder


def test_how_questions_are_asked_is_said(adapter: Path) -> None:
    predictor = Predictor.from_adapter("embedded", adapter, options=["yes", "no"], temperature=2.0, max_length=64)
    cooler = Predictor.from_adapter("embedded", adapter, options=["yes", "no"])
    answer, sharper = predictor("Is a mouse larger than a house?"), cooler("Is a mouse larger than a house?")
    assert answer.options == ("yes", "no")
    assert answer.epistemic == 0
    assert answer.abstain is None
    logit, sharp = (torch.tensor(a.probs).logit()[0] for a in (answer, sharper))
    torch.testing.assert_close(logit, sharp / 2)
    assert predictor("word " * 500).cut


def test_what_does_not_belong_together_is_refused(adapter: Path, llama: str, tmp_path: Path) -> None:
    point = Point({"model.layers.0.self_attn.q_proj.lora_A.weight": torch.zeros(2, 2)})
    c_lora = CLoRAModule(lora=SMALL)
    c_lora.configure_model()
    of_another_base = tmp_path / "another"
    save_posterior(Point(c_lora.posterior().mean()), of_another_base, c_lora.model.adapter_config, "0123456789abcdef")
    cases: list[tuple[str, Any, dict[str, Any]]] = [
        (r"has no adapter_config\.json", tmp_path, {}),
        ("does not fit", adapter, {"base": llama, "tokenizer": "embedded"}),
        ("the posterior lacks parameter", adapter, {"posterior": point}),
        ("is not the one", adapter, {"posterior": of_another_base}),
        ("give its run to", adapter, {"posterior": c_lora.posterior()}),
        ("samples is 0", adapter, {"samples": 0}),
        ("temperature is 0", adapter, {"temperature": 0}),
        ("does not define the task", adapter, {"protocol": "blob"}),
        ("give their names as options", adapter, {"base": Backbone(readout="head", num_labels=2)}),
    ]
    for message, folder, settings in cases:
        with pytest.raises(UsageError, match=message) as refused:
            Predictor.from_adapter(settings.pop("base", "embedded"), folder, **settings)
        assert "\n" not in str(refused.value)
