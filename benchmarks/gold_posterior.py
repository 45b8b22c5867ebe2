"""How far predictions are from those of the true posterior: last layer, LoRA on q and v, Hamiltonian Monte Carlo.

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

from gold import chains
from gold.setting import Setting, problem, small
from measure import machine, quiet


def main(arguments: Sequence[str] | None = None) -> None:
    options = parsed(arguments)
    quiet()
    print(machine(), flush=True)
    for seed in options.seeds:
        setting = Setting(options.labels, options.rank, options.sampled, seed)
        PARTS[options.part](small(setting) if options.small else setting, options)


def gold(setting: Setting, options: argparse.Namespace) -> None:
    """Draw from the posterior of one setting."""
    folder = options.out / setting.folder
    if (folder / chains.RECORD).exists():
        return
    began = time.process_time()
    sizes = (2, 8) if options.small else (chains.WARM_UP, chains.DRAWS)
    found = chains.make(setting, problem(setting), folder, *sizes)
    print(f"{setting.folder}: {time.process_time() - began:.0f} s of CPU, {found['gradients']} gradients of all chains")
    print("  converged" if found["converged"] else "  NOT CONVERGED", found["convergence"]["all"], flush=True)


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    from pathlib import Path

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=list(PARTS))
    parser.add_argument("--labels", type=int, default=50)
    parser.add_argument("--rank", type=int, default=1)
    parser.add_argument("--sampled", choices=("AB", "B"), default="AB")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--small", action="store_true", help="few questions and draws, to see the script run")
    parser.add_argument("--out", type=Path, default=Path("runs/gold"))
    return parser.parse_args(arguments)


PARTS = {"gold": gold}

if __name__ == "__main__":
    main()
