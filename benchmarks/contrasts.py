"""The contrasts that docs/study/plan.md names before the runs of ``baselines.py``, under Holm's procedure.

    python benchmarks/contrasts.py runs/baselines

Differences are paired by seed: mean, half of the 95 % t interval, and the two-sided p-value of the paired t test.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from scipy.stats import ttest_1samp
from study import TEMPERATURE
from study_budgets import IN, RANK, SHIFTED, comparison_of

from bayeslora.metrics.intervals import over_seeds
from bayeslora.results.comparison.comparison import Comparison
from bayeslora.results.comparison.ties import LEVEL, holm

TITLES = {"expected_nll": "NLL*", "kl": "KL", RANK: "rank correlation"}
PLACES = {IN: "in distribution", SHIFTED: "under shift"}


class Contrast(NamedTuple):
    """A row less another, in one number of one test set."""

    row: str
    other: str
    dataset: str
    metric: str

    @property
    def title(self) -> tuple[str, str]:
        """The rows, and what of them is compared."""
        return f"{self.row} less {self.other}", f"{TITLES[self.metric]}, {PLACES[self.dataset]}"


NAMED = (
    Contrast("laplace" + TEMPERATURE, "early_stopping" + TEMPERATURE, SHIFTED, "expected_nll"),
    Contrast("multiswag", "ensemble", IN, "kl"),
    Contrast("blob", "early_stopping", IN, "expected_nll"),
    *(
        Contrast("c_lora" + TEMPERATURE, "c_lora_fe" + TEMPERATURE, dataset, metric)
        for metric in ("expected_nll", RANK)
        for dataset in (IN, SHIFTED)
    ),
)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path, help="--out of baselines.py")
    options = parser.parse_args(arguments)
    rows = dict.fromkeys(row for contrast in NAMED for row in (contrast.row, contrast.other))
    print(table(comparison_of(options.study, list(rows), NAMED[0].other)))


def table(comparison: Comparison) -> str:
    """Every named contrast, and whether Holm's procedure rejects that there is no difference."""
    found = {contrast.title: differences(comparison, contrast) for contrast in NAMED}
    p_values = {title: float(ttest_1samp(values, 0.0).pvalue) for title, values in found.items()}
    rejected = holm(p_values)
    lines = [f"| contrast | number | seeds | difference | p | Holm, {LEVEL:.0%} |", "|---|---|--:|--:|--:|---|"]
    for title, values in found.items():
        mean, half = over_seeds(values)
        told = "differs" if title in rejected else "not told apart"
        cells = (*title, str(len(values)), f"{mean:+.3f} ± {half or 0:.3f}", f"{p_values[title]:.4f}", told)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def differences(comparison: Comparison, contrast: Contrast) -> list[float]:
    """The contrast in every seed that both rows have."""
    own, other = (
        {run.seed: run.numbers[contrast.dataset, contrast.metric] for run in comparison.methods[row]}
        for row in (contrast.row, contrast.other)
    )
    return [own[seed] - other[seed] for seed in sorted(own.keys() & other.keys(), key=str)]


if __name__ == "__main__":
    main()
