"""The code on the page about SWAG runs as it stands."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

PAGE = Path(__file__).parent.parent.parent / "docs" / "swag.md"


def blocks() -> list[str]:
    """The page's Python code blocks in their order."""
    return re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)


@pytest.fixture
def name(tmp_path: Path) -> str:
    """Folder of a tiny random text classifier."""
    from transformers import BertConfig, BertForSequenceClassification

    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    torch.manual_seed(0)
    BertForSequenceClassification(BertConfig(vocab_size=40, num_labels=3, **sizes)).save_pretrained(tmp_path / "model")
    return str(tmp_path / "model")


def loader(n: int) -> DataLoader:
    ids = torch.randint(0, 40, (n, 6), generator=torch.Generator().manual_seed(n))
    rows = [{"input_ids": row, "attention_mask": torch.ones_like(row), "labels": row[0] % 3} for row in ids]
    return DataLoader(rows, batch_size=8)


def test_the_page_runs(name: str, tmp_path: Path) -> None:
    namespace: dict[str, Any] = {"name": name, "folder": str(tmp_path / "run")}
    for split, n in (("train", 24), ("val", 8), ("test", 16)):
        namespace[f"{split}_loader"] = loader(n)
    training, swag_too, saving = blocks()
    exec(training, namespace)
    exec(swag_too, namespace)
    exec(saving, namespace)
    swag, draws = namespace["swag"], namespace["draws"]
    metrics = json.loads((tmp_path / "run" / "test" / "metrics.json").read_text())
    assert metrics["method"] == "TextClassifier+swag"
    assert metrics["n_members"] == 30
    assert metrics["datasets"]["test"]["n"] == 16
    assert swag.moments.count == 3
    assert draws.keys() == dict(namespace["module"].named_parameters()).keys()
    assert all(len(draw) == 2 for draw in draws.values())
