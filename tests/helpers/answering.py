"""A module and data that only answer: predictions are a function of the row's number."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch.utils.data import DataLoader

from bayeslora.types import AnswerBatch, Predictive

SIZES = {"test": 23, "ood:far": 11}


@dataclass(frozen=True)
class Question:
    id: str
    true_probs: tuple[float, ...] | None


def logits_of(row: torch.Tensor) -> torch.Tensor:
    """Two members' logits for three options, a function of the row alone."""
    phase = row[:, None] * torch.tensor([1.0, 2.0, 3.0])
    return torch.stack([torch.sin(phase), torch.cos(phase)]).masked_fill(_absent(row), -torch.inf)


def _absent(row: torch.Tensor) -> torch.Tensor:
    """Every third question has two options."""
    return ((row % 3 == 0)[:, None]) & (torch.arange(3) == 2)


def answer_batch(rows: list[int], dataset: str) -> AnswerBatch:
    row = torch.tensor(rows)
    width = 2 if all(r % 3 == 0 for r in rows) else 3
    zeros = torch.zeros(len(rows), 1, dtype=torch.long)
    mask = ~_absent(row)[:, :width]
    return AnswerBatch(zeros, zeros, torch.arange(len(rows)), zeros[:, 0], mask.long(), mask, row % 2, row, dataset)


class Data(L.LightningDataModule):
    """Questions in shuffled batches; rows may be left out or repeated."""

    def __init__(self, rows: dict[str, list[int]] | None = None, batch_size: int = 4) -> None:
        super().__init__()
        self.rows = rows or {
            name: torch.randperm(size, generator=torch.Generator().manual_seed(0)).tolist()
            for name, size in SIZES.items()
        }
        self.batch_size = batch_size

    def questions(self, dataset: str) -> list[Question]:
        probs = [(0.5, 0.5) if row % 3 == 0 else (0.2, 0.3, 0.5) for row in range(SIZES[dataset])]
        return [Question(f"{dataset}/q{row}", probs[row] if dataset == "test" else None) for row in range(len(probs))]

    def test_dataloader(self) -> list[Any]:
        return [
            DataLoader(rows, batch_size=self.batch_size, collate_fn=partial(answer_batch, dataset=name))
            for name, rows in self.rows.items()
        ]

    predict_dataloader = test_dataloader

    def transfer_batch_to_device(self, batch: Any, device: Any, dataloader_idx: int) -> Any:
        return batch


class Module(L.LightningModule):
    method, seed = "toy", 7

    def __init__(self, wrap: bool = False, bad_row: int | None = None) -> None:
        super().__init__()
        self.wrap, self.bad_row = wrap, bad_row

    def test_step(self, batch: AnswerBatch, batch_idx: int, dataloader_idx: int = 0) -> Any:
        logits = logits_of(batch.example_id)[:, :, : batch.answer_mask.shape[1]].clone()
        if self.bad_row is not None:
            logits[:, batch.example_id == self.bad_row] = torch.nan
        predictive = Predictive.from_logits(logits)
        return {"predictive": predictive} if self.wrap else predictive

    predict_step = test_step


def trainer(root: Path, *callbacks: L.Callback, **kwargs: Any) -> L.Trainer:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    return L.Trainer(default_root_dir=root, callbacks=list(callbacks), **(quiet | kwargs))
