"""What every row of ``baselines.py`` adds to early stopping, and the contrasts named beforehand.

    python benchmarks/contrasts.py runs/baselines
    python benchmarks/contrasts.py runs/baselines --first-seed 20        (of a part of the seeds)

Differences are paired by seed, with half of their 95 % t interval: rows as they are from early stopping as it is, rows
with a temperature from early stopping with a temperature. The contrasts are those of docs/study/plan.md, with
the two-sided p-value of the paired t test and Holm's procedure over all of them.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from baseline_rows import ROWS
from scipy.stats import ttest_1samp
from study import TEMPERATURE
from study_budgets import IN, RANK, SHIFTED, UNSEEN, comparison_of, difference

from bayeslora.metrics.intervals import over_seeds
from bayeslora.results.comparison.comparison import Comparison, Summary
from bayeslora.results.comparison.ties import LEVEL, holm

TITLES = {"expected_nll": "NLL*", "kl": "KL", RANK: "rank correlation"}
PLACES = {IN: "in distribution", SHIFTED: "under shift"}
BASELINE = "early_stopping"
COLUMNS = {
    "NLL*": (IN, "expected_nll"),
    "NLL*, shift": (SHIFTED, "expected_nll"),
    "accuracy*": (IN, "expected_accuracy"),
    "accuracy*, shift": (SHIFTED, "expected_accuracy"),
    "ECE": (IN, "ece_15"),
    "AURC": (IN, "aurc"),
    "rank corr.": (IN, RANK),
    "rank corr., shift": (SHIFTED, RANK),
    "AUROC, unseen": (UNSEEN, "auroc_total"),
}


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
    Contrast("laplace" + TEMPERATURE, BASELINE + TEMPERATURE, SHIFTED, "expected_nll"),
    Contrast("multiswag", "ensemble", IN, "kl"),
    Contrast("blob", BASELINE, IN, "expected_nll"),
    *(
        Contrast("c_lora" + TEMPERATURE, "c_lora_fe" + TEMPERATURE, dataset, metric)
        for metric in ("expected_nll", RANK)
        for dataset in (IN, SHIFTED)
    ),
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the script: see its first lines."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path, help="--out of baselines.py")
    parser.add_argument("--first-seed", type=int, default=0, help="seeds before it are left out")
    options = parser.parse_args(arguments)
    found = comparison_of(options.study, [row + end for row in ROWS for end in ("", TEMPERATURE)], BASELINE)
    comparison = Comparison([run for run in found.runs if int(str(run.seed)) >= options.first_seed], BASELINE)
    for end in ("", TEMPERATURE):
        like = [run for run in comparison.runs if run.method.endswith(TEMPERATURE) == bool(end)]
        print(added(Comparison(like, BASELINE + end)) + "\n")
    print(table(comparison))


def added(comparison: Comparison) -> str:
    """Every row: mean over seeds and, in brackets, the difference from the reference."""
    lines = [f"| | seeds | {' | '.join(COLUMNS)} |", "|---|--:" + "|--:" * len(COLUMNS) + "|"]
    for row in comparison.methods:
        found = [comparison.summary(row, *key) for key in COLUMNS.values()]
        seeds = max(summary.runs for summary in found if summary is not None)
        cells = ["-" if one is None else _cell(one) for one in found]
        lines.append(f"| {row} | {seeds} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(found: Summary) -> str:
    if found.difference is None:
        return f"{found.mean:.3f} ± {found.half or 0:.3f}"
    return f"{found.mean:.3f} ({difference(found)})"


def table(comparison: Comparison) -> str:
    """Every named contrast whose rows are there, and whether Holm's procedure rejects that there is no difference."""
    made = [contrast for contrast in NAMED if {contrast.row, contrast.other} <= comparison.methods.keys()]
    found = {contrast.title: differences(comparison, contrast) for contrast in made}
    found = {title: values for title, values in found.items() if len(values) > 1}  # one seed has no interval
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
