"""Loaders that a trainer has without their DataModule go on inside an epoch where a checkpoint left them."""

from pathlib import Path

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor

from bayeslora import Backbone, BLoBModule, CLoRAModule, LoRA, LoRAEnsemble, LoRAModule
from bayeslora.lightning_modules.kl_schedule import release_cycle
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


def test_data_that_an_ensemble_was_trained_on_serve_another_module(data: Path, tmp_path: Path) -> None:
    questions = datamodule(data)
    members = LoRAEnsemble(Backbone("embedded"), LoRA(r=2, target_modules=["q_proj"]), members=2)
    trainer(tmp_path, max_steps=1).fit(members, datamodule=questions)
    module = Noted()
    trainer(tmp_path, max_steps=1).fit(module, datamodule=questions)
    assert len(module.rows) == 1
    assert questions.members == (0,)


@pytest.mark.parametrize("kind", [BLoBModule, CLoRAModule])
def test_the_releases_schedule_needs_no_datamodule(kind: type, data: Path, tmp_path: Path) -> None:
    questions, kept = datamodule(data), []
    questions.setup("fit")
    for given in ({"datamodule": questions}, {"train_dataloaders": questions.train_dataloader()}):
        module = kind(Backbone("embedded"), LoRA(r=2, target_modules=["q_proj"]), kl_schedule="release")
        trainer(tmp_path, max_steps=1, limit_val_batches=0).fit(module, **given)
        kept.append(module.kl_schedule)
    assert kept[0] == kept[1]
    assert kept[0].cycle == release_cycle(len(questions.train_questions), questions.batch_size)
