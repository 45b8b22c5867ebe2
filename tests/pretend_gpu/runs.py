"""Runs of this package on the pretend device: modules, data, and a trainer as the command line makes one on a GPU."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from bayeslora.callbacks.predictions import Predictions
from bayeslora.datamodules.jsonl import JSONLDataModule
from bayeslora.lightning_modules.multiple_choice import MultipleChoiceModule
from bayeslora.lightning_modules.prediction_path import prediction_path
from bayeslora.models.loading import LoRA
from bayeslora.models.pretrained import resolve_pretrained

SITES = LoRA(r=2, dropout=0.1, target_modules=["q_proj", "v_proj", "lm_head"])
Make = Callable[[], L.LightningModule]
Callbacks = Callable[[], list[L.Callback]]


def nothing() -> list[L.Callback]:
    """No callbacks."""
    return []


def questions(base: str = "embedded", readout: str = "label_token") -> L.LightningDataModule:
    """Twelve questions a split, of several lengths and numbers of options."""
    colours = ["red", "green", "blue", "white"]

    def row(name: str, index: int) -> dict[str, Any]:
        options, text = colours[: 2 + index % 3], " ".join(colours[: 1 + index % 4])
        return {"id": name, "question": f"{text} {index}?", "options": options, "label": index % 2}

    return _data(row, base, readout)


def pairs(base: str) -> L.LightningDataModule:
    """Twelve pairs of sentences a split, with one of three labels."""
    return _data(
        lambda name, index: {"id": name, "sentence1": f"red {index}", "sentence2": "blue", "label": index % 3},
        base,
        "head",
    )


def _data(row: Callable[[str, int], dict[str, Any]], base: str, readout: str) -> L.LightningDataModule:
    folder = Path(tempfile.mkdtemp())
    for split in ("train", "validation", "test"):
        rows = [json.dumps(row(f"{split}{index}", index)) for index in range(12)]
        (folder / f"{split}.jsonl").write_text("\n".join(rows))
    return JSONLDataModule(path=str(folder), tokenizer=base, readout=readout, labels=12, batch_size=4)


def trainer(folder: Path, *callbacks: L.Callback, epochs: int = 1, **options: Any) -> L.Trainer:
    """A trainer on the GPU in the command line's precision there, which refuses what does not repeat its bits."""
    return L.Trainer(
        accelerator="gpu",
        devices=1,
        precision="bf16-mixed",
        max_epochs=epochs,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
        default_root_dir=folder,
        callbacks=[ModelCheckpoint(folder, filename="last", enable_version_counter=False), *callbacks],
        deterministic=True,
        inference_mode=False,  # as on the command line; the pretend device's tensors do not work in inference mode
        **options,
    )


def every_stage(make: Make, callbacks: Callbacks = nothing, data: Callable[[], Any] = questions) -> Path:
    """Fit, test, resume in a new module, and predict with another; callbacks are new each time. The run's folder."""
    folder = Path(tempfile.mkdtemp())
    module, first = make(), trainer(folder, *callbacks())
    first.fit(module, datamodule=data())
    _check_home(module)
    first.test(module, datamodule=data(), verbose=False)
    last = str(folder / "last.ckpt")
    trainer(folder, *callbacks(), epochs=2).fit(make(), datamodule=data(), ckpt_path=last, weights_only=True)
    own = trainer(folder, *callbacks(), Predictions())
    own.predict(make(), datamodule=data(), ckpt_path=last, weights_only=True, return_predictions=False)
    assert (folder / "predict" / "predictions.parquet").is_file()
    record = folder / "run.json"
    if record.is_file():  # of the device, also once the module has left it
        assert json.loads(record.read_text())["peak_bytes"] == torch.cuda.max_memory_allocated()
    return folder


def _check_home(module: L.LightningModule) -> None:
    """After training, Lightning has brought the module to the CPU: all of it."""
    away = [name for name, tensor in module.state_dict().items() if tensor.device.type != "cpu"]
    assert not away, f"left on the device after fit: {away[:3]}"


# --- encoders ---


def encoder() -> str:
    """Folder of a tiny random BERT with the tokenizer of the embedded base."""
    from transformers import AutoTokenizer, BertConfig, BertModel

    folder = tempfile.mkdtemp()
    tokenizer = AutoTokenizer.from_pretrained(resolve_pretrained("embedded"))
    tokenizer.padding_side = "right"
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    positions = {"max_position_embeddings": 300, "pad_token_id": tokenizer.pad_token_id}
    with torch.device("cpu"):
        BertModel(BertConfig(vocab_size=len(tokenizer), **sizes, **positions)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


# --- modules of others ---


class Foreign(L.LightningModule):
    """A module that knows nothing of this package."""

    def __init__(self) -> None:
        super().__init__()
        with torch.device("cpu"):
            self.net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.log("val/nll", nn.functional.cross_entropy(self.net(batch[0]), batch[1]))

    def test_step(self, batch: list[Tensor], batch_idx: int) -> Any:
        return prediction_path(self)(batch)

    predict_step = test_step

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.net.parameters(), lr=0.1)


class Numbers(L.LightningDataModule):
    """Numbers to classify."""

    def train_dataloader(self) -> DataLoader[Any]:
        source = torch.Generator().manual_seed(0)
        inputs = torch.randn(12, 4, generator=source, device="cpu")
        return DataLoader(TensorDataset(inputs, torch.arange(12, device="cpu") % 3), batch_size=6)

    val_dataloader = test_dataloader = predict_dataloader = train_dataloader


def logits_of(module: Any, batch: list[Tensor]) -> Tensor:
    """The foreign module's logits."""
    return module.net(batch[0])


def labels_of(batch: list[Tensor]) -> Tensor:
    """The foreign data's labels."""
    return batch[1]


def saved(folder: Path, module: MultipleChoiceModule, name: str = "posterior") -> str:
    """What a module has trained, as a run folder keeps it."""
    from bayeslora.posteriors.state import save_posterior

    place = folder / name
    save_posterior(module.posterior(), place, module.model.adapter_config, module.model.base_fingerprint)
    return str(place)
