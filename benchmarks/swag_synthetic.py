"""SWAG against plain fine-tuning and ensembles on the embedded benchmark, paired by seed.

    OMP_NUM_THREADS=1 python benchmarks/swag_synthetic.py --seeds 10 --out runs/swag_synthetic

A seed draws the training questions and their order; five members of a kind differ in their initial weights. Kinds:
plain (maximum likelihood, the rate falls linearly to zero) and swag (``configs/method/swag.yaml``: snapshots from the
middle on, at half the peak rate). Rows: member 0 of each kind alone (mle, swag), and all five as a mixture (ensemble,
multiswag), each as it is and with a temperature fitted on the validation fifth of the same labels. What is there is not
made again, so that a study that was cut short goes on, and more seeds can be added.

Contrasts, named before the run: swag - mle and multiswag - ensemble, in distribution and under shift.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import lightning as L
from measure import machine, quiet

from bayeslora.callbacks.posterior import SavedPosteriors
from bayeslora.callbacks.predictions import Predictions
from bayeslora.callbacks.run_folder import RunFolder
from bayeslora.callbacks.schedule import Schedule
from bayeslora.callbacks.swag import SWAG
from bayeslora.callbacks.temperature import Temperature
from bayeslora.compare import compare
from bayeslora.datamodules.synthetic import SyntheticDataModule
from bayeslora.lightning_modules.lora import LoRAModule
from bayeslora.models.loading import LoRA
from bayeslora.models.noise import stream

MEMBERS = 5
ROWS = {"mle": ("plain", 1), "swag": ("swag", 1), "ensemble": ("plain", MEMBERS), "multiswag": ("swag", MEMBERS)}
CONTRASTS = {"mle": ("mle", "swag"), "ensemble": ("ensemble", "multiswag")}


def main() -> None:
    options = arguments()
    quiet()
    print(machine(), flush=True)
    for seed in range(options.first_seed, options.first_seed + options.seeds):
        for kind in ("plain", "swag"):
            for member in range(MEMBERS):
                train(options, seed, kind, member)
        for row in ROWS:
            for tempered in (False, True):
                test(options, seed, row, tempered)
        print(f"seed {seed} done", flush=True)
    tables(options.out)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/swag_synthetic"))
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--labels", type=int, default=120)
    parser.add_argument("--samples", type=int, default=10, help="of each SWAG posterior")
    return parser.parse_args()


def data(options: argparse.Namespace, seed: int) -> SyntheticDataModule:
    """The embedded benchmark as ``configs/quickstart.yaml`` has it."""
    ood = ["synthetic:shifted", "synthetic:ood"]
    return SyntheticDataModule(labels=options.labels, batch_size=16, eval_batch_size=256, ood=ood, seed=seed)


def trainer(root: Path, callbacks: list[L.Callback], epochs: int | None = None) -> L.Trainer:
    return L.Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        limit_val_batches=0,
        callbacks=callbacks,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        inference_mode=False,
        use_distributed_sampler=False,
        default_root_dir=root,
    )


def posterior(options: argparse.Namespace, seed: int, kind: str, member: int) -> Path:
    return options.out / "members" / f"seed-{seed}" / f"{kind}-{member}" / "posterior"


def train(options: argparse.Namespace, seed: int, kind: str, member: int) -> None:
    """One member's posterior, unless it is there."""
    folder = posterior(options, seed, kind, member)
    if folder.exists():
        return
    swag = SWAG(schedule=Schedule("constant"))
    callbacks: list[L.Callback] = [swag, RunFolder()] if kind == "swag" else [RunFolder()]
    module = LoRAModule(lora=LoRA(r=8, alpha=16), learning_rate=2e-3, seed=stream(seed, "member", member))
    trainer(folder.parent, callbacks, options.epochs).fit(module, datamodule=data(options, seed))


def test(options: argparse.Namespace, seed: int, row: str, tempered: bool) -> None:
    """The predictions of a row, unless they are there."""
    kind, members = ROWS[row]
    name = row + "+temperature" * tempered
    root = options.out / "tests" / name / f"seed-{seed}"
    if (root / "test").exists():
        return
    folders = [str(posterior(options, seed, kind, member)) for member in range(members)]
    callbacks: list[L.Callback] = [
        SavedPosteriors(folders, options.samples, name=row),
        *([Temperature()] if tempered else []),
    ]
    module = LoRAModule(lora=LoRA(r=8, alpha=16), seed=seed)
    callbacks += [RunFolder(), Predictions(method=name)]
    trainer(root, callbacks).test(module, datamodule=data(options, seed), verbose=False)


def tables(out: Path) -> None:
    """All rows against mle, then each contrast by itself, as Markdown, CSV and plots."""
    done = {name: out / "tests" / name for row in ROWS for name in (row, f"{row}+temperature")}
    compare(list(done.values()), "mle", out / "all", overwrite=True)
    for reference, names in CONTRASTS.items():
        compare([done[name] for name in names], reference, out / f"against-{reference}", overwrite=True)


if __name__ == "__main__":
    main()
