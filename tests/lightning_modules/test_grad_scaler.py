"""Training with a gradient scaler: a step that overflows is skipped, and two optimisers step under one scale."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.plugins import MixedPrecision
from torch.amp import GradScaler

from bayeslora import Backbone, BLoBModule, CLoRAModule, IVONModule, LoRA, LoRAEnsemble, Optimisation
from bayeslora.datamodules import SyntheticDataModule
from bayeslora.lightning_modules.multiple_choice import MultipleChoiceModule
from bayeslora.types import AnswerBatch


class _Scaled(MixedPrecision):
    """Gradients are scaled, the arithmetic is float32's."""

    def __init__(self, scaler: GradScaler) -> None:
        super().__init__("16-mixed", "cpu", scaler)

    def autocast_context_manager(self) -> AbstractContextManager[Any]:  # type: ignore[override]
        return nullcontext()


def _fitted(root: Path, module: MultipleChoiceModule, scaler: GradScaler | None) -> dict[str, torch.Tensor]:
    run = L.Trainer(
        default_root_dir=root,
        accelerator="cpu",
        max_epochs=1,
        plugins=[] if scaler is None else [_Scaled(scaler)],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        limit_val_batches=0,
    )
    run.fit(module, datamodule=SyntheticDataModule(labels=32, batch_size=8, seed=1))
    return {name: value.detach().clone() for name, value in module.trainable().items()}


def _ensemble() -> LoRAEnsemble:
    lora, rate = LoRA(r=2, target_modules=["q_proj"]), Optimisation(1e-2, warmup=0.0)
    return LoRAEnsemble(Backbone("embedded"), lora, 2, optimisation=rate, seed=1)


def test_an_overflow_of_the_scaler_fails_no_member(tmp_path: Path) -> None:
    class Steep(LoRAEnsemble):
        def member_losses(self, places: Sequence[int], batches: Sequence[AnswerBatch]) -> torch.Tensor:
            return 1e3 * super().member_losses(places, batches)  # too much for float32 at the first scale

    own = _ensemble()
    module = Steep(own.backbone, own.lora, 2, optimisation=own.optimisation, seed=1)
    scaler = GradScaler("cpu", init_scale=2.0**127, backoff_factor=2.0**-100)
    weights = _fitted(tmp_path, module, scaler)
    assert scaler.get_scale() == 2.0**27  # one overflow
    assert module.active_members() == (0, 1)
    ups = [value for name, value in weights.items() if ".lora_B." in name]
    assert all(value.isfinite().all() and (value != 0).any() for value in ups)


def test_a_member_whose_gradient_is_broken_fails_and_does_not_hold_up_the_others(tmp_path: Path) -> None:
    class Broken(LoRAEnsemble):
        def on_after_backward(self) -> None:
            for parameter in self.trainable().values():
                if parameter.grad is not None:
                    parameter.grad[1] = torch.nan
            super().on_after_backward()

    own = _ensemble()
    module = Broken(own.backbone, own.lora, 2, optimisation=own.optimisation, seed=1)
    with pytest.warns(UserWarning, match="member 1 has failed"):
        weights = _fitted(tmp_path, module, GradScaler("cpu", init_scale=2.0))
    assert module.usable_members() == (0,)
    assert all((value[0] != 0).any() for name, value in weights.items() if ".lora_B." in name)


@pytest.mark.parametrize("kind", [BLoBModule, CLoRAModule])
def test_two_optimisers_step_under_one_scale(tmp_path: Path, kind: type[MultipleChoiceModule]) -> None:
    options: dict[str, Any] = {"optimisers": "two", "seed": 1, "optimisation": Optimisation(1e-3, warmup=0.0)}
    lora = LoRA(r=2, target_modules=["q_proj"])
    plain = _fitted(tmp_path / "plain", kind(Backbone("embedded"), lora, **options), None)
    scaler = GradScaler("cpu", init_scale=2.0, growth_interval=1)
    scaled = _fitted(tmp_path / "scaled", kind(Backbone("embedded"), lora, **options), scaler)
    assert scaler.get_scale() == 2.0**5  # doubled in each of four steps
    for name, value in plain.items():
        torch.testing.assert_close(scaled[name], value, atol=1e-6, rtol=1e-5)


def test_ivon_is_not_shown_the_gradients_of_a_step_that_overflows(tmp_path: Path) -> None:
    pytest.importorskip("ivon")
    rate = Optimisation(1.0, warmup=0.0)
    module = IVONModule(Backbone("embedded"), LoRA(r=2, target_modules=["q_proj"]), ess=1e4, optimisation=rate, seed=1)
    scaler = GradScaler("cpu", init_scale=2.0**127, backoff_factor=2.0**-100)
    weights = _fitted(tmp_path, module, scaler)
    assert scaler.get_scale() == 2.0**27  # one overflow
    assert all(value.isfinite().all() for value in weights.values())
    assert all((value != 0).any() for name, value in weights.items() if ".lora_B." in name)
    assert all(std.isfinite().all() for std in module.posterior().std().values())
