"""Small runs: their questions, a quiet trainer, and what they must agree on to the bit."""

import json
from pathlib import Path

import lightning as L
import torch


def questions(folder: Path) -> Path:
    """A small benchmark in JSONL."""
    from bayeslora.datamodules.synthetic_process import questions as synthetic

    folder.mkdir()
    for split, source, n in (("train", "train", 120), ("validation", "easy", 20), ("test", "test", 40)):
        rows = [
            {"id": q.id, "question": q.question, "options": list(q.options), "label": q.label}
            for q in synthetic(source)[:n]
        ]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def assert_equal(first: object, second: object, where: str = "") -> None:
    """Bit for bit, through dicts and lists."""
    if isinstance(first, torch.Tensor):
        assert torch.equal(first, second), where
    elif isinstance(first, dict):
        assert first.keys() == second.keys(), where
        for key in first:
            assert_equal(first[key], second[key], f"{where}/{key}")
    elif isinstance(first, list | tuple):
        for index, pair in enumerate(zip(first, second, strict=True)):
            assert_equal(*pair, f"{where}/{index}")
    else:
        assert first == second, where


def trainer(root: Path, **changes: object) -> L.Trainer:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    return L.Trainer(**{"default_root_dir": root, "accelerator": "cpu", "max_epochs": 1, **quiet, **changes})
