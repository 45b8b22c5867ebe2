"""The contrasts that docs/study/plan.md names for ``papers/encoder``, with questions as units.

    python benchmarks/encoder_contrasts.py runs/papers/encoder

NLL of a row less that of another, question by question, averaged over the seeds that both have; half of the interval is
1.96 standard errors over questions, the p-value is of a normal law, and Holm's procedure runs over all contrasts.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from bayeslora.metrics import scores
from bayeslora.results.comparison.ties import LEVEL, holm, p_value
from bayeslora.results.prediction_file import read_predictions

PAIRS = (
    ("laplace", "temperature"),
    ("blob", "early_stopping_temperature"),
    ("laplace_best", "early_stopping_temperature"),
)
DATASETS = {"obqa": "in distribution", "csqa": "out of it"}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the script: see its first lines."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="the grid's folder")
    out = parser.parse_args(arguments).out / "obqa"
    print(table(out))


def table(out: Path) -> str:
    """Every contrast that has a seed, in Markdown."""
    found = {}
    for own, other in PAIRS:
        for dataset, place in DATASETS.items():
            if seeds := sorted(_seeds(out / own) & _seeds(out / other)):
                values = torch.stack([_nll(out / own / s, dataset) - _nll(out / other / s, dataset) for s in seeds])
                found[f"{own} less {other}", place] = len(seeds), values.mean(0)
    numbers = {title: (float(v.mean()), float(v.std() / len(v) ** 0.5)) for title, (_, v) in found.items()}
    p_values = {title: p_value(*number) for title, number in numbers.items()}
    rejected = holm(p_values)
    lines = [
        f"| contrast | NLL | seeds | questions | difference | p | Holm, {LEVEL:.0%} |",
        "|---|---|--:|--:|--:|--:|---|",
    ]
    for title, (seeds_used, values) in found.items():
        mean, error = numbers[title]
        told = "differs" if title in rejected else "not told apart"
        difference = f"{mean:+.3f} ± {1.96 * error:.3f}"
        cells = (*title, str(seeds_used), str(len(values)), difference, f"{p_values[title]:.4f}", told)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _seeds(row: Path) -> set[str]:
    return {file.parent.name for file in row.glob("seed-*/done.json")}


def _nll(run: Path, dataset: str) -> Tensor:
    answers = read_predictions(run / "test" / "predictions.parquet").datasets[dataset]
    return scores.nll(answers.probs, answers.label).double()


if __name__ == "__main__":
    main()
