"""Loaders that a trainer has without their DataModule go on inside an epoch where a checkpoint left them."""

from pathlib import Path

import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor

from bayeslora import Backbone, LoRA, LoRAModule
from tests.helpers.ensembles import datamodule, trainer


class Noted(LoRAModule):
    def __init__(self) -> None:
        super().__init__(Backbone("embedded"), LoRA(r=2, target_modules=["q_proj"]), learning_rate=5e-3, seed=1)
        self.rows: list[list[int]] = []

    def training_step(self, batch: object, batch_idx: int) -> Tensor:
        self.rows.append(batch.example_id.tolist())  # type: ignore[attr-defined]
        return super().training_step(batch, batch_idx)  # type: ignore[arg-type]


def trained(root: Path, data: Path, *callbacks: ModelCheckpoint, ckpt: Path | None = None) -> Noted:
    questions, module = datamodule(data), Noted()
    questions.setup("fit")
    options = {"callbacks": list(callbacks), "enable_checkpointing": bool(callbacks), "limit_val_batches": 0}
    trainer(root, **options).fit(module, questions.train_dataloader(), ckpt_path=ckpt, weights_only=True)
    return module


def test_a_run_without_its_datamodule_resumes_inside_an_epoch(data: Path, tmp_path: Path) -> None:
    kept = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=1, save_top_k=-1)
    whole = trained(tmp_path, data, kept)
    batches = len(whole.rows) // 2
    for step in (1, batches, batches + 2):
        again = trained(tmp_path, data, ckpt=tmp_path / f"step={step}.ckpt")
        assert again.rows == whole.rows[step:]
        assert all(torch.equal(p, whole.trainable()[name]) for name, p in again.trainable().items())
