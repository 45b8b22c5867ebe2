"""Where Laplace's Gaussian, its prior and its precision come from: every combination, at two ends of the same runs.

    OMP_NUM_THREADS=1 python benchmarks/laplace_grid.py --seeds 10 --out runs/study
    OMP_NUM_THREADS=1 python benchmarks/laplace_grid.py --encoder "$(python tools/real_base.py minilm)" --data DIR \
        --seeds 5 --labels 200 --steps 200 --out runs/encoder

The mean of the Gaussian (``trained`` or ``refit``) x the prior's mean (``zero``, ``initial``, ``trained``) x its
precision (``evidence``, ``validation``) x the checkpoint (``last``; ``best``, of least validation NLL after an epoch).
A seed is trained once; one fit a checkpoint serves all of its rows. A row for which no precision has the highest
evidence is left out and counted. Rows of the named contrast in docs/study/plan.md are made with a temperature as well.
Nothing is tuned on the test questions.

The benchmark is the embedded one, or, with ``--encoder``, a pretrained encoder on OpenBookQA with CommonsenseQA as the
shift, read from a folder in the hub's schema; its accuracy and NLL are those of the labels.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import lightning as L
import torch
from laplace_study import OTHERS, TEMPERATURE, Posteriors, embedded, numbers, test
from measure import machine, quiet
from study import CONFIGS, configuration, overlays, run

from bayeslora.datamodules.multiple_choice import MultipleChoiceDataModule
from bayeslora.datamodules.openbookqa import OpenBookQADataModule
from bayeslora.errors import RunError, UsageError
from bayeslora.metrics import over_seeds
from bayeslora.posteriors.laplace.fit import CENTRES, MEANS, Fit, Prior
from bayeslora.posteriors.laplace.selection import minimise
from bayeslora.types import AnswerBatch, Predictive

CHECKPOINTS = ("last", "best")
NETWORK = "network"
GRID = {
    f"{mean}_{centre}_{precision}": Prior(precision, centre, posterior_mean=mean)
    for precision in ("evidence", "validation")
    for centre in CENTRES
    for mean in MEANS
}
NAMED = [f"{mean}_{centre}_evidence" for centre in ("zero", "initial") for mean in MEANS]
HEADS = ("accuracy", "NLL", "ECE", "accuracy, shift", "NLL, shift", "ECE, shift")


class Grid(Posteriors):
    """The rows of one checkpoint, and the network itself beside them.

    Args:
        folders: Row to its run folder.
    """

    def __init__(self, folders: dict[str, Path]) -> None:
        super().__init__(folders, {}, mean="refit")
        self.network: dict[str, float] = {}

    def on_test_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """One fit; every row's prior is chosen from what it left."""
        fit = self.fitted(trainer, pl_module, "full")
        for row in list(self.files):
            name = row.removesuffix(TEMPERATURE)
            tempered = row.endswith(TEMPERATURE)
            if name == NETWORK:
                self.network[row] = temperature_of(fit) if tempered else 1.0
                continue
            prior = GRID[name]
            try:
                chosen = Prior(
                    prior.precision,
                    prior.mean,
                    posterior_mean=prior.posterior_mean,
                    temperature="validation" if tempered else 1.0,
                )
                posterior, choice, report = fit.choose(chosen)
            except (UsageError, RunError) as error:
                print(f"{row}: {error}", flush=True)
                del self.files[row]
                continue
            self.posteriors[row] = posterior, choice.temperature
            print(row, report["precision"], report["gamma"], choice.temperature, report.get("refit"), flush=True)

    def on_test_batch_end(self, trainer: L.Trainer, pl_module: Any, *args: Any) -> None:
        """Predict a batch with every posterior, and with the network."""
        super().on_test_batch_end(trainer, pl_module, *args)
        batch: AnswerBatch = args[1]
        with torch.no_grad():
            own = Predictive.from_logits(pl_module.model(batch).logits[None])
        for row, temperature in self.network.items():
            predictive = own if temperature == 1 else own.tempered(temperature)
            self.files[row].on_test_batch_end(trainer, pl_module, predictive, *args[1:])


def temperature_of(fit: Fit) -> float:
    """The temperature of least validation NLL of the network itself."""
    validation = fit.validation
    assert validation is not None
    none = torch.zeros(*validation.mean.shape, validation.mean.shape[-1], dtype=torch.float64)
    start = torch.zeros(1, dtype=torch.float64)
    return minimise(lambda log: validation.nll(none, temperature=log.exp().item()), start, 3.0).exp().item()


def main() -> None:
    """Run the script: see its first lines."""
    options = arguments()
    quiet()
    print(machine(), flush=True)
    rows = [NETWORK, NETWORK + TEMPERATURE, *GRID, *(row + TEMPERATURE for row in NAMED)]
    for seed in range(options.first_seed, options.first_seed + options.seeds):
        trained = train(options, seed)
        for end in CHECKPOINTS:
            folders = {row: options.out / f"laplace_grid_{end}" / row / f"seed-{seed}" for row in rows}
            done = options.out / f"laplace_grid_{end}" / f"seed-{seed}.done"
            if not done.exists():
                test(trained / "checkpoints" / f"{end}.ckpt", Grid(folders), questions(options, seed))
                done.touch()
            print(f"seed {seed}, {end}: done", flush=True)
    for end in CHECKPOINTS:
        print(f"\n{end}\n\n{table(options.out / f'laplace_grid_{end}', rows)}")


def train(options: argparse.Namespace, seed: int) -> Path:
    """The folder of a maximum likelihood run that is validated after every epoch; trained where it is missing."""
    folder = options.out / "laplace_grid_runs" / f"seed-{seed}"
    if not (folder / "posterior").exists():
        every = "--trainer.check_val_every_n_epoch=1"
        where = f"--trainer.default_root_dir={folder}"
        run("fit", *configuration(options, seed), *encoder(options), *overlays(("mle",)), every, where, "--overwrite")
    return folder


def encoder(options: argparse.Namespace) -> list[str]:
    """The options that put an encoder and OpenBookQA in the place of the embedded benchmark, where one is given."""
    if options.encoder is None:
        return []
    return [
        f"--config={CONFIGS / 'base' / 'minilm.yaml'}",
        f"--config={CONFIGS / 'data' / 'obqa.yaml'}",
        f"--model.backbone.pretrained={options.encoder}",
        f"--data.data_dir={options.data}",
        f"--data.labels={options.labels}",
        f"--data.max_test={options.questions}",
        "--data.ood=[csqa]",
    ]


def questions(options: argparse.Namespace, seed: int) -> MultipleChoiceDataModule:
    """What a seed trains on, validates on and is tested on."""
    if options.encoder is None:
        return embedded(options, seed, OTHERS[:1])
    return OpenBookQADataModule(
        data_dir=options.data,
        labels=options.labels,
        batch_size=16,
        eval_batch_size=32,
        max_test=options.questions,
        ood=["csqa"],
        seed=seed,
    )


def table(out: Path, rows: list[str]) -> str:
    """Rows in Markdown: mean over seeds, and the paired difference from the network with half of its 95 % interval."""
    found = {row: results(out / row) for row in rows}
    lines = [f"| | seeds | {' | '.join(HEADS)} |", "|---|--:" + "|--:" * len(HEADS) + "|"]
    for row in rows:
        if not found[row]:
            lines.append(f"| {row} | 0 |{' |' * len(HEADS)}")
            continue
        cells = [against(found[row], found[NETWORK], name) for name in HEADS]
        lines.append(f"| {row} | {len(found[row])} | {' | '.join(cells)} |")
    lines += ["", f"| refit less trained | seeds | {' | '.join(HEADS)} |", "|---|--:" + "|--:" * len(HEADS) + "|"]
    for row in rows:
        other = row.replace("refit", "trained")
        if row != other and found[row] and found[other]:
            cells = [against(found[row], found[other], name).split(" ", 1)[1].strip("()") for name in HEADS]
            lines.append(f"| {row.removeprefix('refit_')} | {len(found[row])} | {' | '.join(cells)} |")
    return "\n".join(lines)


def against(own: dict[str, dict[str, float]], other: dict[str, dict[str, float]], name: str) -> str:
    """Mean over seeds, and the paired difference with half of its interval."""
    pairs = [(own[seed][name], other[seed][name]) for seed in own if seed in other]
    difference, half = over_seeds([x - y for x, y in pairs])
    return f"{over_seeds([x for x, _ in pairs])[0]:.3f} ({difference:+.3f} ± {half or 0:.3f})"


def results(folder: Path) -> dict[str, dict[str, float]]:
    """The numbers of every seed of a row."""
    return {file.parts[-3]: numbers(file) for file in sorted(folder.glob("seed-*/test/predictions.parquet"))}


def arguments() -> argparse.Namespace:
    """The options of the script."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--labels", type=int, default=120)
    parser.add_argument("--steps", type=int, default=600, help="optimiser steps of a training")
    parser.add_argument("--questions", type=int, default=500, help="of each test set")
    parser.add_argument("--encoder", type=Path, help="folder of a pretrained encoder, in place of the embedded base")
    parser.add_argument("--data", type=Path, help="folder with OpenBookQA and CommonsenseQA, for --encoder")
    parser.add_argument("--out", type=Path, default=Path("runs/study"))
    return parser.parse_args()


if __name__ == "__main__":
    main()
