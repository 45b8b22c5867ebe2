"""The study at several budgets of labels as tables and a picture: every method, and what context adds to C-LoRA.

    OMP_NUM_THREADS=1 python benchmarks/study.py --labels 50 --rows mle map ... --out runs/study-50      (and others)
    python benchmarks/study_budgets.py runs/study-50 runs/study runs/study-500 --rows mle mle+temperature blob

A cell is the mean over seeds with half of its 95 % t interval; in brackets the difference from the first row, paired by
seed, in bold where its interval leaves out zero.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure
from rich.console import Console

from bayeslora.commands.compare import compare
from bayeslora.results.comparison.comparison import RUN, Comparison, Summary
from bayeslora.results.plots import STYLE, line_styles, save

IN, SHIFTED, UNSEEN = "synthetic", "synthetic:shifted", "synthetic:ood"
RANK = "entropy_correlation_total"
COLUMNS = {
    "accuracy*": (IN, "expected_accuracy"),
    "NLL*": (IN, "expected_nll"),
    "ECE": (IN, "ece_15"),
    "KL": (IN, "kl"),
    "AURC": (IN, "aurc"),
    "rank corr.": (IN, RANK),
    "NLL*, shifted": (SHIFTED, "expected_nll"),
    "AUROC, unseen": (UNSEEN, "auroc_total"),
}
SAME = ("KL",)  # its differences are those of NLL*
COSTS = {"training, s": "train_seconds", "prediction, s": "predict_seconds"}
CONTEXT, WITHOUT = "c_lora", ("c_lora_fe", "mle", "mle+temperature")
PANELS = {"NLL* in distribution, nats": (IN, "expected_nll"), "rank correlation with the true entropy": (IN, RANK)}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the script: see its first lines."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("studies", nargs="+", type=Path, help="--out of study.py, a folder a budget")
    parser.add_argument("--rows", nargs="+", required=True, help="the first is what the others are compared with")
    parser.add_argument("--drawn", nargs="+", help="rows of the picture (all)")
    parser.add_argument("--picture", type=Path, help="PNG to write")
    options = parser.parse_args(arguments)
    found = {}
    for study in options.studies:
        comparison = comparison_of(study, options.rows, options.rows[0])
        labels = int(comparison.runs[0].record["labels"])
        found[labels] = comparison
        print(f"\n## {labels} labels\n\n{table(comparison)}", flush=True)
    if CONTEXT in options.rows:
        print("\n## What context adds\n\n" + context_table(dict(zip(found, options.studies, strict=True))))
    if options.picture:
        save(picture(found, options.drawn or options.rows), options.picture)


def comparison_of(study: Path, rows: Sequence[str], reference: str) -> Comparison:
    """Those rows of a study that it has."""
    present = [f"{row}={study / row}" for row in rows if (study / row).is_dir()]
    return compare(present, reference, console=Console(quiet=True))


def table(comparison: Comparison) -> str:
    """Every row at one budget."""
    lines = [f"| | {' | '.join([*COLUMNS, *COSTS])} |", "|---" + "|--:" * (len(COLUMNS) + len(COSTS)) + "|"]
    for method in comparison.methods:
        cells = [cell(comparison.summary(method, *key), title not in SAME) for title, key in COLUMNS.items()]
        costs = [comparison.summary(method, RUN, key) for key in COSTS.values()]
        cells += ["-" if cost is None else f"{cost.mean:.1f}" for cost in costs]
        lines.append(f"| {method} | {' | '.join(cells)} |")
    return "\n".join(lines)


def cell(found: Summary | None, against: bool = True) -> str:
    """Mean, interval and, where asked for, the difference."""
    if found is None:
        return "-"
    text = f"{found.mean:.3f} ±{found.half or 0:.3f}"
    return f"{text}<br>({difference(found)})" if against and found.difference is not None else text


def difference(found: Summary) -> str:
    """A difference and half of its interval, bold where clear."""
    text = f"{found.difference:+.3f} ±{found.difference_half or 0:.3f}"
    return f"**{text}**" if found.clear else text


def context_table(studies: dict[int, Path]) -> str:
    """C-LoRA's rank correlation with the true entropy, minus that of rows without context."""
    titles = [f"{'shifted, ' * (dataset == SHIFTED)}minus {row}" for dataset in (IN, SHIFTED) for row in WITHOUT]
    lines = [f"| labels | {' | '.join(titles)} |", "|---" + "|--:" * len(titles) + "|"]
    for labels, study in studies.items():
        against = {row: comparison_of(study, [row, CONTEXT], row) for row in WITHOUT if (study / row).is_dir()}
        keys = [(dataset, row) for dataset in (IN, SHIFTED) for row in WITHOUT]
        found = [against[row].summary(CONTEXT, dataset, RANK) if row in against else None for dataset, row in keys]
        lines.append(f"| {labels} | {' | '.join('-' if one is None else difference(one) for one in found)} |")
    return "\n".join(lines)


@mpl.rc_context(STYLE)
def picture(found: dict[int, Comparison], rows: Sequence[str]) -> Figure:
    """NLL and rank correlation over the budget of labels, a line a row with intervals."""
    figure = Figure(figsize=(8.4, 4.0), layout="constrained")
    for axes, (title, key) in zip(figure.subplots(1, len(PANELS)), PANELS.items(), strict=True):
        for place, (row, line) in enumerate(zip(rows, line_styles(), strict=False)):
            points = {n: c.summary(row, *key) for n, c in found.items() if row in c.methods}
            drawn = {n: point for n, point in points.items() if point is not None}
            x = [n * 1.02 ** (place - len(rows) / 2) for n in drawn]  # side by side
            means, halves = zip(*((point.mean, point.half or 0) for point in drawn.values()), strict=True)
            axes.errorbar(x, means, halves, label=row, capsize=2, **line)
        axes.set(xscale="log", xlabel="labels (log scale)", title=title, xticks=list(found), xticklabels=list(found))
        axes.minorticks_off()
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4)
    return figure


if __name__ == "__main__":
    main()
