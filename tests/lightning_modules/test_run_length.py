"""Going on with a run of another length is said, since learning rates follow the length."""

import warnings
from pathlib import Path

import lightning as L
import pytest

from bayeslora import Backbone, LoRA, LoRAModule
from bayeslora.datamodules import SyntheticDataModule


def _fit(root: Path, epochs: int, accumulate: int = 1, ckpt: Path | None = None) -> L.Trainer:
    run = L.Trainer(
        default_root_dir=root,
        accelerator="cpu",
        max_epochs=epochs,
        accumulate_grad_batches=accumulate,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        limit_val_batches=0,
    )
    module = LoRAModule(Backbone("embedded"), LoRA(r=2, target_modules=["q_proj"]))
    run.fit(module, datamodule=SyntheticDataModule(labels=16, batch_size=8), ckpt_path=ckpt, weights_only=True)
    return run


def test_another_length_is_said_and_the_same_is_not(tmp_path: Path) -> None:
    checkpoint = tmp_path / "last.ckpt"
    _fit(tmp_path, epochs=1).save_checkpoint(checkpoint)
    with pytest.warns(UserWarning, match="has 6 optimiser steps, the one whose checkpoint it goes on from had 2"):
        _fit(tmp_path, epochs=3, ckpt=checkpoint)
    with pytest.warns(UserWarning, match="has 2 accumulate_grad_batches, the one .* had 1"):
        _fit(tmp_path, epochs=2, accumulate=2, ckpt=checkpoint)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*goes on from had")
        _fit(tmp_path, epochs=1, ckpt=checkpoint)
