"""Methods side by side on the embedded benchmark, where the true answer probabilities are known; paired by seed.

    OMP_NUM_THREADS=1 python benchmarks/study.py --rows mle map swag --seeds 10 --out runs/study

A seed draws the training questions, their order and the initial weights. A row is what `bayeslora fit` and `bayeslora
test` make of ``quickstart`` with the overlays of ``ROWS``; the same with a temperature fitted on the
validation fifth of the same labels is the row ``NAME+temperature``. Every row answers the same draw of
``--questions`` of each test set, and every budget of labels is trained on for as many optimiser steps. Folders are
ordinary run folders: `bayeslora compare` reads them. What is there is not made again, so that a study that was cut
short goes on, and rows and seeds can be added.

Options after ``--`` go to every command, for trials: ``-- --model.optimisation.learning_rate=1e-3``.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from measure import machine, quiet

from bayeslora.cli import main as bayeslora
from bayeslora.commands.compare import compare
from bayeslora.results.prediction_file import read_predictions, write_predictions

CONFIGS = Path(__file__).resolve().parent.parent / "bayeslora" / "configs"
TEMPERATURE = "+temperature"
BATCH_SIZE = 16  # the quickstart's
FOUR = "--trainer.callbacks.samples=4"  # of each of five members


@dataclass(frozen=True)
class Row:
    """How a row is made.

    Attributes:
        overlays: Files of ``method/`` on top of the quickstart's configuration, for fit and for test.
        options: Options on top of those.
        trained: The row whose checkpoint is tested; None trains its own.
    """

    overlays: tuple[str, ...]
    options: tuple[str, ...] = ()
    trained: str | None = None


ROWS = {
    "mle": Row(("mle",)),
    "map": Row(("map",)),
    "mc_dropout": Row(("mc_dropout",)),
    "swag": Row(("swag",)),
    "swag_scale_256": Row(("swag",), ("--trainer.callbacks.scale=256",), trained="swag"),
    "ensemble": Row(("ensemble",)),
    "multiswag": Row(("ensemble", "swag"), (FOUR,)),
    "multiswag_scale_256": Row(("ensemble", "swag"), (FOUR, "--trainer.callbacks.scale=256"), trained="multiswag"),
    "tfb": Row(("mle", "tfb"), trained="mle"),
    "tfb_release": Row(("mle", "tfb", "tfb_release"), trained="mle"),
    "tfb_validation": Row(("mle", "tfb"), ("--trainer.callbacks.source=validation",), trained="mle"),
    "c_lora": Row(("c_lora",)),
    "c_lora_mean": Row(("c_lora", "c_lora_mean"), trained="c_lora"),
    "c_lora_fe": Row(("c_lora", "c_lora_fe")),
    "blob": Row(("blob",)),
    "blob_mean": Row(("blob", "blob_mean"), trained="blob"),
    "scalabl": Row(("scalabl",)),
    "ivon": Row(("ivon",)),
    "blob_mean_tfb": Row(("blob", "blob_mean", "tfb"), trained="blob"),
}


def main() -> None:
    """Run the script: see its first lines."""
    options = arguments()
    quiet()
    print(machine(), flush=True)
    for seed in range(options.first_seed, options.first_seed + options.seeds):
        for name in options.rows:
            started = time.perf_counter()
            made = make(options, name, seed)
            if made:
                print(f"seed {seed} {name}: {time.perf_counter() - started:.1f} s", flush=True)
    names = [name + end for name in options.rows for end in ("", TEMPERATURE)[: 2 - options.no_temperature]]
    reference = options.reference or options.rows[0]
    compare([f"{name}={options.out / name}" for name in names], reference, options.out / "comparison", overwrite=True)


def arguments() -> argparse.Namespace:
    """The options of the script."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--rows", nargs="+", choices=list(ROWS), default=list(ROWS), metavar="ROW", help=", ".join(ROWS)
    )
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--labels", type=int, default=120)
    parser.add_argument("--steps", type=int, default=600, help="optimiser steps of a training")
    parser.add_argument("--questions", type=int, default=500, help="of each test set")
    parser.add_argument("--reference", help="the row that the others are compared with (the first)")
    parser.add_argument("--no-temperature", action="store_true", help="leave the rows with a temperature out")
    parser.add_argument("--out", type=Path, default=Path("runs/study"))
    own, rest = split(sys.argv[1:])
    options = parser.parse_args(own)
    options.rest = rest
    return options


def split(args: Sequence[str]) -> tuple[list[str], list[str]]:
    """What is before ``--`` and what is after it."""
    place = args.index("--") if "--" in args else len(args)
    return list(args[:place]), list(args[place + 1 :])


def make(options: argparse.Namespace, name: str, seed: int) -> bool:
    """One row of one seed, as it is and with a temperature, as far as it is missing; whether anything was."""
    row, folder = ROWS[name], options.out / name / f"seed-{seed}"
    common = [*configuration(options, seed), *overlays(row.overlays), *row.options, *options.rest]
    made = False
    if row.trained is not None:
        made = make(options, row.trained, seed)
    elif not (folder / "posterior").exists():
        run("fit", *common, "--trainer.limit_val_batches=0", f"--trainer.default_root_dir={folder}", "--overwrite")
    if not (folder / "test").exists():
        if row.trained is not None:
            keep(options.out / row.trained / folder.name, folder)
        run("test", *common, f"--trainer.default_root_dir={folder}")
        made = True
    place = folder.parents[1] / (name + TEMPERATURE) / folder.name
    if not options.no_temperature and not (place / "test").exists():
        keep(folder, place)
        temper(common, folder, place)
        made = True
    return made


def keep(run_folder: Path, place: Path) -> None:
    """A copy of a run without what was predicted, so that a row tests what another trained and keeps its costs."""
    if place.exists():
        shutil.rmtree(place)
    shutil.copytree(run_folder, place, ignore=shutil.ignore_patterns("test", "predict", "logs"))


def temper(common: Sequence[str], folder: Path, place: Path) -> None:
    """Fit the temperature on the validation questions, and apply it to what was predicted without one."""
    fitted = [*common, *overlays(("temperature",)), "--data.max_test=1", f"--trainer.default_root_dir={place}"]
    run("predict", *fitted)
    temperature = json.loads((place / "posterior" / "temperature.json").read_text())["temperature"]
    found = read_predictions(folder / "test" / "predictions.parquet")
    tempered = {name: answers.tempered(temperature) for name, answers in found.datasets.items()}
    (place / "test").mkdir()
    write_predictions(replace(found, datasets=tempered), place / "test" / "predictions.parquet")


def configuration(options: argparse.Namespace, seed: int) -> list[str]:
    """The embedded benchmark as the quickstart has it, at this label budget."""
    return [
        f"--config={CONFIGS / 'quickstart.yaml'}",
        f"--seed_everything={seed}",
        f"--data.labels={options.labels}",
        f"--data.max_test={options.questions}",
        f"--trainer.max_epochs={epochs(options.labels, options.steps)}",
        "--trainer.logger=false",
        "--trainer.enable_progress_bar=false",
        "--trainer.enable_model_summary=false",
    ]


def epochs(labels: int, steps: int) -> int:
    """Epochs over four fifths of the labels, the training questions, that take about this many optimiser steps."""
    training = labels - labels // 5
    return round(steps / -(-training // BATCH_SIZE))


def overlays(names: Sequence[str]) -> list[str]:
    """The options that put methods' configurations on top."""
    return [f"--config={CONFIGS / 'method' / name}.yaml" for name in names]


def run(*command: str) -> None:
    """One command of bayeslora; a row that fails ends the study with its message, and what was made stays."""
    status = bayeslora(command)
    if status:
        raise SystemExit(status)


if __name__ == "__main__":
    main()
