"""What each method adds to early stopping and a temperature, on the embedded benchmark; paired by seed.

    OMP_NUM_THREADS=1 python benchmarks/baselines.py --tune --out runs/baselines       (seeds 100 to 105, once)
    OMP_NUM_THREADS=1 python benchmarks/baselines.py --rows early_stopping laplace --seeds 10 --out runs/baselines

A training serves every row of ``ROWS`` that names it, and a row is tested as it is and, as ``NAME+temperature``, with a
temperature fitted on the validation fifth of the same labels. Modules are built from the shipped configurations
(``quickstart`` and ``method/*``). Rows with a hyper-parameter take the value that ``--tune`` has found by validation
likelihood and left in ``tuned.json``; it looks at no test question. What is there is not made again. Folders are those
of `bayeslora test` as far as `bayeslora compare` and ``study_budgets.py`` read them; ``contrasts.py`` tests what
docs/study/plan.md names.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import torch
import yaml
from baseline_parts import FOLDS, Curve, Labels, Outcome, StopAt, mean_nll, trainer_of
from baseline_rows import AFTER_TRAINING, PATIENCE, ROWS, TRAININGS, TRIALS, Training, Tuned
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from measure import machine, quiet
from study import BATCH_SIZE, CONFIGS, TEMPERATURE

import bayeslora
from bayeslora.callbacks.temperature import fit_temperature
from bayeslora.datamodules.synthetic import SyntheticDataModule

STEPS = 600  # of a training that nothing stops
EVERY = 2  # epochs between validations
FOLD_EPOCHS = 30
TUNING_SEEDS = range(100, 106)
OTHERS = ["synthetic:shifted", "synthetic:ood"]


@dataclass(frozen=True)
class Study:
    """One seed.

    Attributes:
        out: Folder of all rows and trainings.
        seed: Draws the labels, their order and the initial weights.
        tuned: Values of the hyper-parameters.
        questions: Of each test set.
        labels: In all, a fifth of them for validation.
    """

    out: Path
    seed: int
    tuned: Tuned
    questions: int = 250
    labels: int = 120

    def data(self, kind: Callable[..., SyntheticDataModule] = SyntheticDataModule) -> SyntheticDataModule:
        """The questions of this seed."""
        others = OTHERS if self.questions > 1 else []
        sizes = {"labels": self.labels, "batch_size": BATCH_SIZE, "eval_batch_size": 256, "max_test": self.questions}
        return kind(seed=self.seed, ood=others, **sizes)

    def module(self, training: Training, **options: Any) -> Any:
        """A module as the shipped configurations have it, with this training's options."""
        name, arguments = "", dict[str, Any]()
        for file in ("quickstart", *(f"method/{method}" for method in training.methods)):
            found = yaml.safe_load((CONFIGS / f"{file}.yaml").read_text())["model"]
            name, arguments = found["class_path"], merged(arguments, found["init_args"])
        arguments = merged(merged(arguments, training.options(self.tuned)), options)
        return getattr(bayeslora, name)(**arguments, seed=self.seed)

    @property
    def steps_per_epoch(self) -> int:
        """Optimiser steps over four fifths of the labels."""
        return -(-(self.labels - self.labels // 5) // BATCH_SIZE)

    def trained(self, name: str) -> tuple[Path, dict[str, Any]]:
        """The folder of a training and its record, made where it is missing."""
        folder = self.out / "trainings" / name / f"seed-{self.seed}"
        done = folder / "training.json"
        if not done.exists():
            started, training = time.perf_counter(), TRAININGS[name]
            if training.found_by is None:
                record = self.fit(self.module(training), self.data(), folder, training)
            else:
                steps, temperature = self.folds() if training.found_by == "folds" else self.stopped_at()
                everything = self.data(partial(Labels, None))
                record = self.fit(self.module(training), everything, folder, training, StopAt(steps))
                record["temperature"] = temperature
            done.write_text(json.dumps({**record, "train_seconds": time.perf_counter() - started}))
        return folder, json.loads(done.read_text())

    def stopped_at(self) -> tuple[int, float]:
        """The steps that early stopping has found, and the temperature there."""
        row = self.row("early_stopping")
        return row["best_step"], row["temperature"]

    def folds(self) -> tuple[int, float]:
        """The steps and the temperature of least NLL over all labels, each predicted by a training without it."""
        curves = []
        for fold in range(FOLDS):
            curve, data = Curve(), self.data(partial(Labels, fold))
            training = Training(stop_after=FOLD_EPOCHS)
            self.fit(
                self.module(training), data, self.out / "trainings" / "fold" / f"seed-{self.seed}", training, curve
            )
            curves.append(curve)
        labels = [curve.label for curve in curves]
        looks = list(zip(*(curve.seen for curve in curves), strict=True))
        best = min(range(len(looks)), key=lambda place: mean_nll(looks[place], labels))
        return (best + 1) * EVERY * self.steps_per_epoch, fit_temperature(list(looks[best]), labels)

    def fit(
        self, module: Any, data: SyntheticDataModule, folder: Path, training: Training, *extra: L.Callback
    ) -> dict[str, Any]:
        """Train, and leave ``best.ckpt`` (where it is validated) and ``last.ckpt``; what is known of it then."""
        best = ModelCheckpoint(folder, filename="best", monitor="val/nll", mode="min", enable_version_counter=False)
        callbacks = [*training.callbacks(self.tuned), *extra]
        if training.stopped:
            callbacks.append(EarlyStopping("val/nll", mode="min", patience=PATIENCE))
        if training.stop_after is not None:
            callbacks.append(StopAt(training.stop_after * self.steps_per_epoch))
        looks = training.stopped or training.stop_after is not None or "ensemble" in training.methods
        data.setup("fit")
        L.seed_everything(self.seed, verbose=False)
        trainer = trainer_of(
            [*callbacks, best] if looks else callbacks,
            max_epochs=round(STEPS / -(-len(data.train_questions) // BATCH_SIZE)),
            check_val_every_n_epoch=EVERY,
            limit_val_batches=None if looks else 0,
        )
        trainer.fit(module, datamodule=data)
        trainer.save_checkpoint(folder / "last.ckpt")
        record: dict[str, float] = {"labels": self.labels, "steps": trainer.global_step}
        if best.best_model_score is not None:
            chosen = torch.load(best.best_model_path, weights_only=True, map_location="cpu")
            record |= {"best_step": chosen["global_step"], "best_nll": float(best.best_model_score)}
        return record

    def row(self, name: str) -> dict[str, Any]:
        """The record of a row, made where it is missing."""
        row = ROWS[name]
        folders = [self.out / (name + end) / f"seed-{self.seed}" for end in ("", TEMPERATURE)]
        if not (folders[1] / "run.json").exists():
            folder, record = self.trained(row.training)
            own = {} if row.samples is None else {"samples": row.samples}
            outcome = Outcome(folders, record, record.pop("temperature", None))
            started = time.perf_counter()
            trainer_of([*row.callbacks(self.tuned), outcome], default_root_dir=folders[0]).test(
                self.module(TRAININGS[row.training], **own),
                datamodule=self.data(),
                ckpt_path=folder / f"{row.checkpoint}.ckpt",
                weights_only=True,
                verbose=False,
            )
            print(f"seed {self.seed} {name}: tested in {time.perf_counter() - started:.1f} s, {record}", flush=True)
        return json.loads((folders[1] / "run.json").read_text())


def merged(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    """The second mapping on top of the first, mapping by mapping."""
    both = {key: merged(first[key], value) for key, value in second.items() if isinstance(first.get(key), dict)}
    return {**first, **second, **both}


def tune(out: Path, seeds: Sequence[int]) -> None:
    """The value of least mean validation NLL of every hyper-parameter, into ``tuned.json``; no test set is made."""
    file = out / "tuned.json"
    chosen: Tuned = json.loads(file.read_text()) if file.exists() else {}
    for name in [name for name in TRIALS if name not in chosen]:
        trials = TRIALS[name]
        found = {}
        for value in trials:
            shared = out / "tuning" / (name if name in AFTER_TRAINING else f"{name}-{value}")
            rows = []
            for seed in seeds:
                study = Study(shared, seed, {**chosen, name: value}, questions=1)
                rows.append(study.row(name)["validation_nll"])
                for end in ("", TEMPERATURE):  # the next trial has the same training and another prediction
                    (shared / (name + end) / f"seed-{seed}" / "run.json").unlink()
            found[value] = sum(rows) / len(rows)
            print(f"{name} {value}: validation NLL {found[value]:.4f}", flush=True)
        chosen[name] = min(found, key=lambda value: found[value])
        file.write_text(json.dumps(chosen))


def main() -> None:
    """Run the script: see its first lines."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="+", choices=list(ROWS), default=list(ROWS), metavar="ROW")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--first-seed", type=int, default=10)
    parser.add_argument("--questions", type=int, default=250, help="of each test set")
    parser.add_argument("--labels", type=int, default=120)
    parser.add_argument("--tune", action="store_true", help="choose the hyper-parameters, on seeds of their own")
    parser.add_argument("--out", type=Path, default=Path("runs/baselines"))
    options = parser.parse_args()
    quiet()
    print(machine(), flush=True)
    if options.tune:
        tune(options.out, TUNING_SEEDS)
        return
    tuned = json.loads((options.out / "tuned.json").read_text())
    for seed in range(options.first_seed, options.first_seed + options.seeds):
        study = Study(options.out, seed, tuned, options.questions, options.labels)
        for name in options.rows:
            study.row(name)


if __name__ == "__main__":
    main()
