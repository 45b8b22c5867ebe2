"""What was found, as Markdown tables and a picture: means over seeds with half of their 95 % t interval."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gold.chains import RECORD
from gold.methods import ADDED, METHODS, SAME
from gold.setting import Setting

from bayeslora.metrics import over_seeds

Found = Mapping[str, Sequence[Mapping[str, Any]]]  # row to the scores of every seed, by test set
GOLD, SETS = "gold", {"synthetic": "in distribution", "synthetic:shifted": "under shift"}
COLUMNS = {
    "tv": "total variation",
    "kl": "KL",
    "agreement": "agreement",
    "mi": "mutual information",
    "mi_correlation": "its rank correlation",
    "nll": "expected NLL",
    "accuracy": "expected accuracy",
}


def report(root: Path, settings: Sequence[Setting]) -> str:
    """The tables of settings that differ in nothing but their seeds."""
    records = [json.loads((root / one.folder / RECORD).read_text()) for one in settings]
    found = scores(root, settings)
    parts = ["### Convergence", convergence_table(records)]
    for name, title in SETS.items():
        parts += [f"### {title.capitalize()}", distance_table(found, name)]
    if len(found) > 2:
        parts += ["### Nearer and better", correlation_table(found)]
    return "\n\n".join(parts)


def scores(root: Path, settings: Sequence[Setting]) -> Found:
    """Rows that every seed has; the gold's own row holds its floor and what it scores itself."""
    folders = [root / one.folder for one in settings]
    found = {GOLD: [json.loads((folder / RECORD).read_text())["tests"] for folder in folders]}
    for name in METHODS:
        files = [folder / "scores" / f"{name}.json" for folder in folders]
        if all(file.exists() for file in files):
            found[name] = [json.loads(file.read_text()) for file in files]
    return found


def convergence_table(records: Sequence[Mapping[str, Any]]) -> str:
    """A line a seed: R-hat and effective sample sizes of all quantities together, and what the sampling took."""
    lines = [
        "| seed | weights | R-hat within 1.01 | largest R-hat | of probabilities | of entries of BA | "
        "least ESS, mean | least ESS, tails | acceptance | leapfrog steps a draw | verdict |",
        "|--:" * 10 + "|---|",
    ]
    for one in records:
        parts, draws = one["convergence"], one["draws"] + one["warm_up"]
        whole = parts["all"]
        lines.append(
            f"| {one['setting']['seed']} | {one['weights']} | {whole['share']:.1%} | {whole['worst']:.3f} | "
            f"{parts['probabilities']['worst']:.3f} | {parts['entries of BA']['worst']:.3f} | {whole['bulk']:.0f} | "
            f"{whole['tail']:.0f} | {sum(one['acceptance']) / len(one['acceptance']):.2f} | "
            f"{one['gradients'] / draws:.0f} | {'converged' if one['converged'] else 'not converged'} |"
        )
    return "\n".join(lines)


def distance_table(found: Found, name: str) -> str:
    """Rows by their total variation on one test set; the gold's first line is half against half, its own the second."""
    lines = [f"| row | prior | {' | '.join(COLUMNS.values())} |", "|---|---" + "|--:" * len(COLUMNS) + "|"]
    for row in sorted(found, key=lambda row: mean(found[row], name, "tv")):
        prior = METHODS[row].prior if row in METHODS else "half against half"
        cells = [cell([one[name][column] for one in found[row]]) for column in COLUMNS]
        lines.append(f"| {row} | {prior} | {' | '.join(cells)} |")
    return "\n".join(lines)


def mean(seeds: Sequence[Mapping[str, Any]], name: str, column: str) -> float:
    """A column's mean over seeds."""
    return over_seeds([one[name][column] for one in seeds])[0]


def cell(values: Sequence[float | None]) -> str:
    """Mean and half interval; empty where a seed has no value."""
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return ""
    centre, half = over_seeds(known)
    return f"{centre:.3f}" + ("" if half is None else f" ± {half:.3f}")


def correlation_table(found: Found) -> str:
    """Rank correlation over the methods, seed by seed, of each distance with expected NLL: 1 where nearer is better."""
    from scipy.stats import spearmanr

    lines = ["| over the methods | " + " | ".join(SETS.values()) + " |", "|---" + "|--:" * len(SETS) + "|"]
    rows = [row for row in found if row not in (GOLD, *ADDED)]
    for column, title in (("tv", "total variation"), ("kl", "KL")):
        cells = []
        for name in SETS:
            values = []
            for seed in range(len(found[GOLD])):
                pairs = [(found[row][seed][name][column], found[row][seed][name]["nll"]) for row in rows]
                values.append(float(spearmanr(pairs).statistic))
            cells.append(cell(values))
        lines.append(f"| {title} with expected NLL | {' | '.join(cells)} |")
    return "\n".join(lines)


def picture(found: Found, file: Path) -> None:
    """Distance from the gold across, expected NLL upwards, a point a method, a panel a test set."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, len(SETS), figsize=(11, 5), layout="constrained")
    for panel, (name, title) in zip(panels, SETS.items(), strict=True):
        panel.axhline(mean(found[GOLD], name, "nll"), color="goldenrod", lw=1.5, label="the gold's own expected NLL")
        panel.axvline(mean(found[GOLD], name, "tv"), color="0.6", ls=":", label="gold half against gold half")
        points = {
            row: (mean(seeds, name, "tv"), mean(seeds, name, "nll")) for row, seeds in found.items() if row != GOLD
        }
        for row, point in points.items():
            marker, color = ("o", "tab:blue") if METHODS[row].prior == SAME else ("s", "tab:red")
            panel.plot(*point, marker, color=color, ms=5)
        name_points(panel, points)
        panel.set(xlabel="total variation to the gold posterior", ylabel="expected NLL", title=title)
    panels[0].plot([], [], "o", color="tab:blue", label="the gold's prior")
    panels[0].plot([], [], "s", color="tab:red", label="another prior, or none")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=8)
    figure.savefig(file, dpi=130)
    pyplot.close(figure)


def name_points(panel: Any, points: Mapping[str, tuple[float, float]]) -> None:
    """Names in a column at the right, in the order of the points' heights, each with a line to its point."""
    heights = [point[1] for point in points.values()]
    low, high = min(heights), max(heights)
    column = 1.25 * max(point[0] for point in points.values())
    order = sorted(points, key=lambda row: points[row][1])
    for place, row in enumerate(order):
        across, upwards = points[row]
        beside = low + (high - low) * place / max(1, len(order) - 1)
        panel.plot([across, column * 0.99], [upwards, beside], color="0.8", lw=0.6, zorder=0)
        panel.text(column, beside, row, fontsize=8, va="center")
    panel.set_xlim(0, 1.3 * column)
