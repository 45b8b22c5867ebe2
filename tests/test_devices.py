"""What can be said about running on another device without one: where tensors are made, and in which precision.

``tests/pretend_gpu`` runs the same on a pretend device.
"""

import ast
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from transformers import LlamaModel

from bayeslora.callbacks.decision import Decision
from bayeslora.callbacks.laplace import Laplace
from bayeslora.callbacks.posterior import SavedPosteriors
from bayeslora.callbacks.predictions import Predictions
from bayeslora.callbacks.swag import SWAG
from bayeslora.callbacks.temperature import Temperature
from bayeslora.callbacks.tfb import TFB
from bayeslora.callbacks.vocabulary import VocabularyUncertainty
from bayeslora.datamodules.synthetic import SyntheticDataModule
from bayeslora.lightning_modules.blob import BLoBModule
from bayeslora.lightning_modules.c_lora import CLoRAModule
from bayeslora.lightning_modules.ensemble import LoRAEnsemble
from bayeslora.lightning_modules.ivon import IVONModule
from bayeslora.lightning_modules.lora import LoRAModule
from bayeslora.lightning_modules.multiple_choice import MultipleChoiceModule
from bayeslora.lightning_modules.scalabl import ScalaBLModule
from bayeslora.models.loading import Backbone, LoRA
from bayeslora.posteriors.on_device import OnDevice
from bayeslora.posteriors.state import save_posterior

SITES = LoRA(r=2, dropout=0.1, target_modules=["q_proj", "v_proj"])
QUESTIONS: dict[str, Any] = {"labels": 12, "batch_size": 6, "max_test": 6}
MODULES: dict[str, Callable[[Backbone], MultipleChoiceModule]] = {
    "mle": lambda base: LoRAModule(base, SITES, samples=2),
    "map": lambda base: LoRAModule(base, SITES, prior_std=0.1, support="full_vocab"),
    "ensemble": lambda base: LoRAEnsemble(base, SITES, members=2),
    "blob": lambda base: BLoBModule(base, SITES, samples=2),
    "bbb": lambda base: BLoBModule(base, SITES, factors="AB", predict="flipout", samples=2),
    "scalabl": lambda base: ScalaBLModule(base, SITES, samples=2),
    "ivon": lambda base: IVONModule(base, SITES, samples=2),
    "c_lora": lambda base: CLoRAModule(base, SITES, samples=2),
    "c_lora_release": lambda base: CLoRAModule(base, SITES, init="release", context="free", samples=2),
}
EVERY_STEP: dict[str, Any] = {"start": 1, "unit": "step", "rank": 2, "samples": 2}
CALLBACKS: dict[str, Callable[[], L.Callback]] = {
    "temperature": Temperature,
    "decision": Decision,
    "swag": lambda: SWAG(**EVERY_STEP),
    "swag_linearised": lambda: SWAG(**EVERY_STEP, predict="linearised"),
    "checkpoints": lambda: SWAG(**EVERY_STEP, mode="checkpoints"),
    "tfb": lambda: TFB(anchors=6, samples=2, iterations=1, tolerance=0.5),
    "vocabulary": VocabularyUncertainty,
    **{
        f"laplace_{structure}": lambda structure=structure: Laplace(structure=structure, precision=1.0)
        for structure in ("full", "ekfac", "diag")
    },
}
NOWHERE = "cuda:9999999"
ROOT = Path(__file__).resolve().parents[1]


def fitted_and_tested(folder: Path, module: L.LightningModule, *callbacks: L.Callback) -> L.Trainer:
    """Two steps, a validation and a test in mixed precision on the CPU."""
    trainer = L.Trainer(
        accelerator="cpu",
        precision="bf16-mixed",
        max_steps=2,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        inference_mode=False,
        default_root_dir=folder,
        callbacks=[*callbacks, Predictions(overwrite=True)],
    )
    data = SyntheticDataModule(**QUESTIONS)
    trainer.fit(module, datamodule=data)
    trainer.test(module, datamodule=data, verbose=False)
    return trainer


# --- where tensors are made ---


@pytest.mark.parametrize("name", MODULES)
@pytest.mark.parametrize("device", ["meta", NOWHERE])
def test_a_model_is_the_same_whatever_device_its_trainer_configures_it_for(name: str, device: str, llama: str) -> None:
    """Lightning calls ``configure_model`` within the context of its device; initial values do not depend on it."""
    plain, elsewhere = (MODULES[name](Backbone(llama)) for _ in range(2))
    plain.configure_model()
    with torch.device(device):
        elsewhere.configure_model()
    wanted = plain.trainable()
    for parameter, value in elsewhere.trainable().items():
        assert torch.equal(value, wanted[parameter]), parameter
    assert all(p.device.type == "cpu" for p in elsewhere.model.parameters())


def test_a_new_head_is_the_same_whatever_device_its_trainer_configures_it_for(roberta: str) -> None:
    base = Backbone(roberta, readout="head", num_labels=3)
    plain, elsewhere = (LoRAModule(base, LoRA(r=2, target_modules=["query"])) for _ in range(2))
    plain.configure_model()
    before = torch.get_rng_state()
    with torch.device(NOWHERE):
        elsewhere.configure_model()
    assert torch.equal(before, torch.get_rng_state())
    head = [name for name in plain.trainable() if "classifier" in name]
    assert head
    for name in head:
        assert torch.equal(elsewhere.trainable()[name], plain.trainable()[name])


ROOMS = ("posteriors", "models", "curvature", "lightning_modules", "callbacks")


@pytest.mark.parametrize("room", ROOMS)
def test_every_factory_names_its_device(room: str) -> None:
    """Whoever sets a default device, or calls within its context, changes nothing in these rooms."""
    constructors = {function.__name__ for function in torch.utils._device._device_constructors()}
    homeless = [
        f"{path}:{call.lineno} torch.{call.func.attr}"
        for path in (ROOT / "bayeslora" / room).rglob("*.py")
        for call in ast.walk(ast.parse(path.read_text()))
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute) and call.func.attr in constructors
        if ast.unparse(call.func.value) == "torch" and "device" not in {keyword.arg for keyword in call.keywords}
    ]
    assert not homeless


# --- in which precision ---


@contextmanager
def forwards_in_autocast() -> Iterator[list[bool]]:
    """Notes of every forward pass of a base within the block whether it is under the CPU's autocast."""
    seen: list[bool] = []

    def look(module: torch.nn.Module, args: Any) -> None:
        if isinstance(module, LlamaModel):
            seen.append(torch.is_autocast_enabled("cpu"))

    handle = torch.nn.modules.module.register_module_forward_pre_hook(look)
    try:
        yield seen
    finally:
        handle.remove()


@pytest.mark.parametrize("name", MODULES)
def test_every_forward_of_a_method_is_in_autocast(name: str, tmp_path: Path) -> None:
    module = MODULES[name](Backbone())
    with forwards_in_autocast() as seen:
        fitted_and_tested(tmp_path, module)
    assert seen
    assert all(seen)


@pytest.mark.parametrize("name", CALLBACKS)
def test_every_forward_of_a_callback_is_in_autocast(name: str, tmp_path: Path) -> None:
    """What a callback asks outside of a step, such as SWAG's validation of the mean, is computed as in a step."""
    with forwards_in_autocast() as seen:
        fitted_and_tested(tmp_path, MODULES["mle"](Backbone()), CALLBACKS[name]())
    assert seen
    assert all(seen)


@pytest.mark.parametrize("name", ["swag_linearised", "laplace_full"])
def test_an_evaluation_leaves_nothing_of_a_posterior_on_its_device(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    placed, place = [], OnDevice.placed
    monkeypatch.setattr(OnDevice, "placed", lambda self, *given: placed.append(self) or place(self, *given))
    fitted_and_tested(tmp_path, MODULES["mle"](Backbone()), CALLBACKS[name]())
    assert placed
    assert all(posterior._placed is None for posterior in placed)


def test_every_forward_with_saved_posteriors_is_in_autocast(tmp_path: Path) -> None:
    folders = []
    for seed in range(2):
        module = LoRAModule(Backbone(), SITES, seed=seed)
        swag = SWAG(**EVERY_STEP)
        fitted_and_tested(tmp_path / str(seed), module, swag)
        folders.append(str(tmp_path / f"posterior{seed}"))
        config, base = module.model.adapter_config, module.model.base_fingerprint
        save_posterior(swag.required_posterior(), Path(folders[-1]), config, base)
    trainer = L.Trainer(
        accelerator="cpu",
        precision="bf16-mixed",
        logger=False,
        enable_progress_bar=False,
        default_root_dir=tmp_path,
        callbacks=[SavedPosteriors(folders, samples=2), VocabularyUncertainty()],
    )
    with forwards_in_autocast() as seen:
        trainer.test(LoRAModule(Backbone(), SITES), datamodule=SyntheticDataModule(**QUESTIONS), verbose=False)
    assert seen
    assert all(seen)
