"""Factors of a posterior are moved to the device of a prediction once, and given back when they are asked to be."""

from pathlib import Path
from types import SimpleNamespace

import lightning as L
import pytest

from bayeslora import SWAG, Backbone, BLoBModule, LoRA, LoRAModule
from bayeslora.datamodules.synthetic import SyntheticDataModule
from bayeslora.lightning_modules.multiple_choice import MultipleChoiceModule
from bayeslora.posteriors.mean_field import MeanField
from bayeslora.posteriors.on_device import OnDevice, release
from bayeslora.posteriors.swag import SWAGPosterior


def test_it_is_made_once_a_place_until_it_is_released() -> None:
    made: list[str] = []
    own = OnDevice()
    for place in ("a", "a", "b", "b"):
        assert own.placed(place, lambda place=place: made.append(place) or place.upper()) == place.upper()  # type: ignore[misc, func-returns-value]
    assert made == ["a", "b"]
    release(SimpleNamespace(components=[own]))  # as a mixture has them
    own.placed("b", lambda: made.append("again"))
    assert made == ["a", "b", "again"]


def run(module: MultipleChoiceModule, folder: Path, *callbacks: L.Callback) -> None:
    trainer = L.Trainer(
        accelerator="cpu",
        max_steps=3,
        limit_val_batches=0,
        limit_test_batches=4,
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
        use_distributed_sampler=False,
        inference_mode=False,
        default_root_dir=folder,
        callbacks=list(callbacks),
    )
    data = SyntheticDataModule(batch_size=4)
    trainer.fit(module, datamodule=data)
    trainer.test(module, datamodule=data, verbose=False)


@pytest.mark.parametrize("method", ["swag", "blob"])
def test_a_linearised_evaluation_moves_them_once(method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four batches."""
    family: type[OnDevice] = SWAGPosterior if method == "swag" else MeanField
    asked, made, gone = [], [], []
    covariance, placed = family.logit_covariance, OnDevice.placed  # type: ignore[attr-defined]
    monkeypatch.setattr(family, "logit_covariance", lambda self, j: asked.append(1) or covariance(self, j))
    monkeypatch.setattr(
        family, "placed", lambda self, place, make: placed(self, place, lambda: made.append(1) or make())
    )
    monkeypatch.setattr(family, "release", lambda self: gone.append(1) or OnDevice.release(self))
    base, sites = Backbone("embedded"), LoRA(r=2, target_modules=["q_proj"])
    if method == "swag":
        run(LoRAModule(base, sites), tmp_path, SWAG(start=0, unit="step", rank=2, predict="linearised"))
    else:
        module = BLoBModule(base, sites, predict="linearised")
        run(module, tmp_path)
        assert module._law is None
    assert len(asked) == 4
    assert len(made) == 1
    assert method != "swag" or gone  # BLoB's law is gone with the evaluation
