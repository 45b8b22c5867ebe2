"""Runs on two processes, started from a test."""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def launch(root: Path, data: Path) -> dict:
    """Fit and test on two CPU processes; what rank 0 saw."""
    start(__file__, root, data)
    return json.loads((root / "ddp.json").read_text())


def start(script: str, root: Path, data: Path, *options: str) -> None:
    """Run a script that starts its own other processes, with a folder to write to and the questions."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, script, str(root), str(data), *options], check=True, env=environment)


def main(root: Path, data: Path) -> None:
    """Runs on every rank."""
    import lightning as L
    import torch

    from bayeslora import SWAG, Backbone, LoRA, LoRAModule, Predictions
    from bayeslora.datamodules import JSONLDataModule
    from bayeslora.results.prediction_file import read_predictions

    swag = SWAG(start=0, rank=2, samples=3)
    trainer = L.Trainer(
        default_root_dir=root,
        accelerator="cpu",
        devices=2,
        strategy="ddp",
        max_epochs=2,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        callbacks=[swag, Predictions()],
    )
    module = LoRAModule(Backbone("embedded"), LoRA(dropout=0.1), learning_rate=1e-3, seed=1)
    datamodule = JSONLDataModule(path=str(data), labels=39, batch_size=4, eval_batch_size=7, seed=1)
    trainer.fit(module, datamodule=datamodule)
    weights = torch.cat([p.detach().flatten() for p in module.trainable().values()])
    everyone = trainer.strategy.all_gather(weights)
    moments = trainer.strategy.all_gather(torch.cat([swag.moments.mean, swag.moments.m2]))
    trainer.test(module, datamodule=datamodule)
    if trainer.is_global_zero:
        answers = next(iter(read_predictions(root / "test" / "predictions.parquet").datasets.values()))
        record = {
            "n": len(answers),
            "members": answers.n_members,
            "snapshots": swag.moments.count,
            "ranks agree": bool(torch.equal(everyone[0], everyone[1])),
            "snapshots agree": bool(torch.equal(moments[0], moments[1])),
        }
        (root / "ddp.json").write_text(json.dumps(record))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
