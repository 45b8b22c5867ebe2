"""Validation likelihood of variational methods on the embedded benchmark, by option: how overlays were chosen.

    OMP_NUM_THREADS=1 python benchmarks/variational_tuning.py BLoBModule '{"prior_std": 0.1}' '{"prior_std": 0.2}'

One line for every set of options, JSON objects of the module's arguments. The seeds are none of the study's, and no
test question is looked at.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from typing import Any

import lightning as L
import torch
from measure import quiet

from bayeslora import Backbone, BLoBModule, CLoRAModule, IVONModule, LoRA, ScalaBLModule
from bayeslora.datamodules import SyntheticDataModule
from bayeslora.types import AnswerBatch, Predictive

METHODS = {kind.__name__: kind for kind in (BLoBModule, CLoRAModule, IVONModule, ScalaBLModule)}
LEARNING_RATE = 5e-4  # the quickstart's, of the means


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the script: see its first lines."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("method", choices=METHODS)
    parser.add_argument("options", nargs="+", type=json.loads, help="arguments of the module, a JSON object")
    parser.add_argument("--seeds", type=int, nargs="+", default=[100, 101, 102])
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--labels", type=int, default=120)
    given = parser.parse_args(arguments)
    quiet()
    for options in given.options:
        rows = torch.tensor([validation_nll(given, seed, options) for seed in given.seeds])
        mean, samples = rows.mean(0).tolist()
        print(
            f"{json.dumps(options)}: validation NLL of the mean {mean:.3f}, of samples {samples:.3f} "
            f"[{rows[:, 1].min():.3f}, {rows[:, 1].max():.3f}]",
            flush=True,
        )


def validation_nll(given: argparse.Namespace, seed: int, options: dict[str, Any]) -> tuple[float, float]:
    """Validation NLL of the mean and of the samples after training with one seed."""
    arguments = {"learning_rate": LEARNING_RATE, **options}
    module = METHODS[given.method](Backbone("embedded"), LoRA(r=8, alpha=16), seed=seed, **arguments)
    data = SyntheticDataModule(labels=given.labels, batch_size=16, eval_batch_size=256, seed=seed)
    silent = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = L.Trainer(
        max_epochs=given.epochs, accelerator="cpu", enable_checkpointing=False, limit_val_batches=0, **silent
    )
    trainer.fit(module, datamodule=data)
    module.eval()
    with torch.no_grad():
        batches = list(data.val_dataloader())
        return nll(batches, [module.sampled(batch, None) for batch in batches]), nll(
            batches, [module.predictive(batch) for batch in batches]
        )


def nll(batches: Sequence[AnswerBatch], predictives: Sequence[Predictive]) -> float:
    """Mean negative log-likelihood of all questions, in nats."""
    return torch.cat([p.nll(batch.label) for p, batch in zip(predictives, batches, strict=True)]).mean().item()


if __name__ == "__main__":
    main()
