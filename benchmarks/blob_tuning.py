"""Validation likelihood of BLoB on the embedded benchmark, by its options: how configs/method/blob.yaml was chosen.

python benchmarks/blob_tuning.py '{"std_learning_rate": 5e-3}' '{"std_learning_rate": 5e-3, "prior_std": 0.1}'
"""

from __future__ import annotations

import json
import sys
from typing import Any

import lightning as L
import torch

from bayeslora import Backbone, BLoBModule, LoRA
from bayeslora.datamodules import SyntheticDataModule

SEEDS = (100, 101, 102)
EPOCHS, LABELS, LEARNING_RATE = 100, 120, 5e-4


def main() -> None:
    """Print one line for every set of options, a JSON object of BLoBModule's arguments."""
    for text in sys.argv[1:]:
        options = json.loads(text)
        rows = torch.tensor([validation_nll(seed, options) for seed in SEEDS])
        mean, samples = rows.mean(0).tolist()
        print(f"{text}: validation NLL of the mean {mean:.4f}, of {options.get('samples', 10)} samples {samples:.4f}")


def validation_nll(seed: int, options: dict[str, Any]) -> tuple[float, float]:
    """Validation NLL of the mean and of the samples after training with one seed."""
    arguments = {"learning_rate": LEARNING_RATE, **options}
    module = BLoBModule(Backbone("embedded"), LoRA(r=8, alpha=16), seed=seed, **arguments)
    data = SyntheticDataModule(labels=LABELS, batch_size=16, eval_batch_size=256, seed=seed)
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = L.Trainer(max_epochs=EPOCHS, accelerator="cpu", enable_checkpointing=False, limit_val_batches=0, **quiet)
    trainer.fit(module, datamodule=data)
    with torch.no_grad():
        batches = list(data.val_dataloader())
        mean, samples = (
            torch.cat([predict(batch).nll(batch.label) for batch in batches]).mean().item()
            for predict in (lambda batch: module.sampled(batch, None), module.predictive)
        )
    return mean, samples


if __name__ == "__main__":
    main()
