"""How far predictions are from the true posterior's, by Hamiltonian Monte Carlo: LoRA on q and v of the last layer.

    OMP_NUM_THREADS=1 python benchmarks/gold_posterior.py gold --labels 50 --seeds 0 1 2 --out runs/gold
    OMP_NUM_THREADS=1 python benchmarks/gold_posterior.py methods --labels 50 --seeds 0 1 2 --out runs/gold
    OMP_NUM_THREADS=1 python benchmarks/gold_posterior.py table --labels 50 --seeds 0 1 2 --out runs/gold

``gold`` draws from the posterior of a setting and says whether its chains agree; ``methods`` trains every method of
the package on the same weights and the same questions and measures how far its prediction is from the gold's; ``table``
writes both as Markdown and a picture. What is there is not made again. The plan is in docs/study/plan.md.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

from gold import chains
from gold.distance import distances
from gold.methods import METHODS, predictions
from gold.report import picture, report, scores
from gold.setting import Setting, problem, small
from measure import machine, quiet

from bayeslora.files import write_json


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the script: see its first lines."""
    options = parsed(arguments)
    quiet()
    print(machine(), flush=True)
    asked = {"labels": options.labels, "rank": options.rank, "sampled": options.sampled, "layers": options.layers}
    settings = [Setting(**asked, seed=seed) for seed in options.seeds]
    settings = [small(one) for one in settings] if options.small else settings
    if options.part == "table":
        print(report(options.out, settings))
        if len(found := scores(options.out, settings)) > 1:  # the gold is one
            picture(found, options.out / "gold.png")
        return
    for one in settings:
        PARTS[options.part](one, options)


def gold(setting: Setting, options: argparse.Namespace) -> None:
    """Draw from the posterior of one setting."""
    folder = options.out / setting.folder
    if (folder / chains.RECORD).exists():
        return
    began = time.process_time()
    sizes = (2, 8) if options.small else (chains.WARM_UP, options.draws)
    found = chains.make(setting, problem(setting), folder, *sizes)
    print(f"{setting.folder}: {time.process_time() - began:.0f} s of CPU, {found['gradients']} gradients of all chains")
    print("  converged" if found["converged"] else "  NOT CONVERGED", found["convergence"]["all"], flush=True)


def methods(setting: Setting, options: argparse.Namespace) -> None:
    """Train every method on one setting, and measure it against the gold."""
    folder = options.out / setting.folder
    missing = [name for name in options.rows if not (folder / "scores" / f"{name}.json").exists()]
    if not missing:
        return
    given, gold_predicts = problem(setting), chains.load(folder)
    for name in missing:
        began = time.process_time()
        found = predictions(name, setting, given, folder / "runs")
        scores = {
            test: distances(*found[test], *gold_predicts[test], one.true_probs) for test, one in given.tests.items()
        }
        (folder / "scores").mkdir(exist_ok=True)
        write_json(folder / "scores" / f"{name}.json", scores)
        print(f"{setting.folder} {name}: {time.process_time() - began:.0f} s of CPU, {scores}", flush=True)


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options of the script."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=[*PARTS, "table"])
    parser.add_argument("--labels", type=int, default=50)
    parser.add_argument("--rank", type=int, default=1)
    parser.add_argument("--sampled", choices=("AB", "B"), default="AB")
    parser.add_argument("--layers", type=int, choices=(1, 2), default=1, help="with adapters, from the last")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--draws", type=int, default=chains.DRAWS, help="of each chain, after the warm-up")
    parser.add_argument("--rows", nargs="+", choices=list(METHODS), default=list(METHODS), metavar="ROW")
    parser.add_argument("--small", action="store_true", help="few questions and draws, to see the script run")
    parser.add_argument("--out", type=Path, default=Path("runs/gold"))
    return parser.parse_args(arguments)


PARTS = {"gold": gold, "methods": methods}

if __name__ == "__main__":
    main()
