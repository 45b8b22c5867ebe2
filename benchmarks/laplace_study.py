"""Laplace posteriors around the maximum likelihood runs of ``study.py``: structures, priors and temperatures.

    OMP_NUM_THREADS=1 python benchmarks/study.py --rows mle --seeds 10 --out runs/study
    OMP_NUM_THREADS=1 python benchmarks/laplace_study.py --seeds 10 --out runs/study

Each structure is fitted once a seed, priors are chosen from what the fit has left, and the Jacobian of a batch serves
all rows: a seed takes seconds instead of a command for every row. ``NAME+temperature`` divides the logits by a
temperature fitted on the validation questions. Folders are as `bayeslora test` leaves them; what is there stays.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
from measure import machine, quiet
from torch import Tensor

from bayeslora.callbacks.laplace import MEMORY, Laplace
from bayeslora.callbacks.predictions import Predictions
from bayeslora.curvature.jacobian import contrast_jacobian, contrast_mean
from bayeslora.datamodules.multiple_choice import MultipleChoiceDataModule
from bayeslora.datamodules.synthetic import SyntheticDataModule
from bayeslora.lightning_modules.lora import LoRAModule
from bayeslora.metrics import AURC, ECE, NLL, Accuracy, Divergence, ExpectedAccuracy, ExpectedNLL, auroc, over_seeds
from bayeslora.posteriors.laplace.fit import Fit, Prior
from bayeslora.results.prediction_file import read_predictions
from bayeslora.types import AnswerBatch, GaussianPosterior, Predictive

TEMPERATURE = "+temperature"
OTHERS = ("synthetic:shifted", "synthetic:ood")  # test sets beside the one in distribution
STUDIED = ("full", "ekfac", "kfac_reduce", "release", "diag")
ROWS = {
    **{f"{s}_{p}": (s, Prior(precision=p)) for s in STUDIED for p in ("evidence", "validation")},
    **{f"last_layer_{p}": ("full", Prior(precision=p, subset_of_weights="last")) for p in ("evidence", "validation")},
    **{f"{s}_evidence{TEMPERATURE}": (s, Prior(temperature="validation")) for s in ("full", "ekfac")},
    "full_evidence_initial": ("full", Prior(mean="initial")),
    "full_evidence_by_factor_initial": ("full", Prior(groups="factor", mean="initial")),
    "full_evidence_scale": ("full", Prior(scale="validation")),
    f"full_evidence_initial{TEMPERATURE}": ("full", Prior(mean="initial", temperature="validation")),
}


class Posteriors(L.Callback):
    """Fits every structure, and writes the predictions of every row.

    Args:
        folders: Row to its run folder.
        rows: Row to its structure and prior.
        options: Of Laplace, where a fit is to keep more than it does by itself.
    """

    def __init__(self, folders: dict[str, Path], rows: Mapping[str, tuple[str, Prior]] = ROWS, **options: Any) -> None:
        self.rows, self.options = rows, options
        self.files = {row: Predictions(folder / "test", method=row) for row, folder in folders.items()}
        self.posteriors: dict[str, tuple[GaussianPosterior, float]] = {}

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Refuse to overwrite."""
        for predictions in self.files.values():
            predictions.setup(trainer, pl_module, stage)

    def on_test_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Fit, and choose the priors."""
        fits: dict[str, Fit] = {}
        for row in self.files:
            structure, prior = self.rows[row]
            if structure not in fits:
                fits[structure] = self.fitted(trainer, pl_module, structure)
            posterior, choice, report = fits[structure].choose(prior)
            self.posteriors[row] = posterior, choice.temperature
            print(row, report["precision"], report["gamma"], choice.scale, choice.temperature, flush=True)

    def fitted(self, trainer: L.Trainer, pl_module: L.LightningModule, structure: str) -> Fit:
        """What a fit leaves, from which every prior is chosen; the precision here is of no interest."""
        laplace = Laplace(structure, 1.0, directory=MEMORY, **self.options)
        laplace.fit_to(trainer, pl_module)
        return laplace.fits[0]

    def on_test_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: Any,
        outputs: Any,
        batch: AnswerBatch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Predict a batch with every posterior."""
        logits, jacobian = contrast_jacobian(pl_module.model, batch)
        for row, (posterior, temperature) in self.posteriors.items():
            part = {name: jacobian[name] for name in getattr(posterior, "precision", jacobian)}
            mean = contrast_mean(logits, part, posterior)
            predictive = Predictive.from_gaussian(mean, posterior.logit_covariance(part))
            if temperature != 1:
                predictive = predictive.tempered(temperature)
            self.files[row].on_test_batch_end(trainer, pl_module, predictive, batch, batch_idx, dataloader_idx)

    def on_test_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write the files."""
        for predictions in self.files.values():
            predictions.on_test_epoch_end(trainer, pl_module)


def main() -> None:
    """Run the script: see its first lines."""
    options = arguments()
    quiet()
    print(machine(), flush=True)
    for seed in range(options.first_seed, options.first_seed + options.seeds):
        folders = {row: options.out / f"laplace_{row}" / f"seed-{seed}" for row in options.rows}
        missing = {row: folder for row, folder in folders.items() if not (folder / "test").exists()}
        if missing:
            checkpoint = options.out / "mle" / f"seed-{seed}" / "checkpoints" / "last.ckpt"
            test(checkpoint, Posteriors(missing), embedded(options, seed, OTHERS))
        print(f"seed {seed} done", flush=True)
    print(table(options.out, ["mle", f"mle{TEMPERATURE}", *(f"laplace_{row}" for row in options.rows)]))


def table(out: Path, rows: list[str]) -> str:
    """Rows in Markdown: mean over seeds, and the difference from the first row with half of its 95 % t interval.

    Of averaged probabilities alone: integrating every Gaussian again for its aleatoric part would take minutes.
    """
    found = {
        row: [numbers(file) for file in sorted((out / row).glob("seed-*/test/predictions.parquet"))] for row in rows
    }
    lines = [f"| | {' | '.join(found[rows[0]][0])} |", "|---" + "|--:" * len(found[rows[0]][0]) + "|"]
    for row in rows:
        cells = []
        for name in found[row][0]:
            own, reference = ([one[name] for one in found[key]] for key in (row, rows[0]))
            difference, half = over_seeds([x - y for x, y in zip(own, reference, strict=True)])
            cells.append(f"{over_seeds(own)[0]:.3f} ({difference:+.3f} ± {half or 0:.3f})")
        lines.append(f"| {row} | {' | '.join(cells)} |")
    return "\n".join(lines)


def numbers(file: Path) -> dict[str, float]:
    """The numbers of one run: expected under the true probabilities where they are known, else by the labels."""
    datasets = list(read_predictions(file).datasets.values())
    found: dict[str, Tensor] = {}
    for name, answers in zip(("", ", shift", ", unseen"), datasets, strict=False):  # the last may be missing
        if answers.true_probs is None:
            found["accuracy" + name] = Accuracy()(answers.probs, answers.label)
            found["NLL" + name] = NLL()(answers.probs, answers.label)
        else:
            found["accuracy" + name] = ExpectedAccuracy()(answers.probs, answers.true_probs)
            found["NLL" + name] = ExpectedNLL()(answers.probs, answers.true_probs)
            found["KL" + name] = Divergence()(answers.probs, answers.true_probs)
        found["ECE" + name] = ECE(15)(answers.probs, answers.label)
        found["AURC" + name] = AURC()(answers.probs, answers.label)
    if len(datasets) == 3:
        both = torch.cat([datasets[0].total, datasets[2].total])
        found["AUROC, unseen"] = auroc(both, torch.arange(len(both)) >= len(datasets[0]))
    return {name: float(value) for name, value in found.items()}


def arguments() -> argparse.Namespace:
    """The options of the script."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--rows", nargs="+", choices=list(ROWS), default=list(ROWS), metavar="ROW", help=", ".join(ROWS)
    )
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--labels", type=int, default=120)
    parser.add_argument("--questions", type=int, default=500, help="of each test set")
    parser.add_argument("--out", type=Path, default=Path("runs/study"))
    return parser.parse_args()


def embedded(options: argparse.Namespace, seed: int, others: Sequence[str]) -> SyntheticDataModule:
    """The embedded benchmark with the questions that a seed draws."""
    return SyntheticDataModule(
        labels=options.labels,
        batch_size=16,
        eval_batch_size=256,
        max_test=options.questions,
        ood=list(others),
        seed=seed,
    )


def test(checkpoint: Path, posteriors: L.Callback, data: MultipleChoiceDataModule) -> None:
    """All rows of a seed, around a checkpoint of its maximum likelihood run."""
    module = LoRAModule.load_from_checkpoint(checkpoint, weights_only=True)
    trainer = L.Trainer(
        accelerator="cpu",
        inference_mode=False,  # priors are chosen with gradients
        callbacks=[posteriors],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )
    trainer.test(module, datamodule=data, verbose=False)


if __name__ == "__main__":
    main()
