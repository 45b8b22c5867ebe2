"""What the pages' code takes as given: a tiny classifier."""

from pathlib import Path

import pytest
import torch


@pytest.fixture
def name(tmp_path: Path) -> str:
    """Folder of a tiny random text classifier."""
    from transformers import BertConfig, BertForSequenceClassification

    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    torch.manual_seed(0)
    BertForSequenceClassification(BertConfig(vocab_size=40, num_labels=3, **sizes)).save_pretrained(tmp_path / "model")
    return str(tmp_path / "model")
