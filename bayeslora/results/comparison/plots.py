"""Pictures of a comparison: calibration of every run, risk against coverage, accuracy against ECE."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bayeslora.metrics import scores
from bayeslora.metrics.bins import bin_index, bin_sums
from bayeslora.metrics.evaluate import FLOOR_BINS
from bayeslora.metrics.intervals import over_seeds
from bayeslora.metrics.selective import risk_curve
from bayeslora.results.comparison.comparison import Comparison, Run
from bayeslora.results.plots import (
    BLACK,
    DIRECT,
    FEW,
    GREY,
    START,
    STYLE,
    draw_band,
    draw_counts,
    legend_below,
    line_styles,
    name_lines,
    save,
)

_MARKERS = "osD^vPX<>*"
_SPAN = 0.1  # of an axis at least, in accuracy and in ECE
_FLOOR = "floor of the ECE"


def save_plots(comparison: Comparison, directory: Path) -> list[Path]:
    """Save every plot of a comparison as PNG; returns the files.

    Args:
        comparison: The runs to compare.
        directory: Where the files are written.
    """
    figures = {
        "reliability": reliability(comparison),
        "risk_coverage": risk_coverage(comparison),
        "accuracy_ece": accuracy_ece(comparison),
    }
    return [save(figure, directory / f"{name}.png") for name, figure in figures.items()]


@mpl.rc_context(STYLE)
def reliability(comparison: Comparison, n_bins: int = FLOOR_BINS) -> Figure:
    """Accuracy against confidence on the in-distribution test set: a panel a method, a line a run.

    Where a method has several runs, their lines are faint, and a strong one is of the answers of all of them. The band
    and the counts below are those of a method's first run: within the band lies the accuracy of a bin with 95 %
    probability if its confidences are true. Bins of fewer than 10 questions are left out of the lines.

    Args:
        comparison: The runs to compare.
        n_bins: Number of bins of confidence.
    """
    methods, dataset = comparison.methods, comparison.datasets[0]
    rows = -(-len(methods) // 4)
    columns = -(-len(methods) // rows)
    figure = Figure(figsize=(0.5 + 2.4 * columns, 0.5 + 3.4 * rows), layout="constrained")
    grid = figure.add_gridspec(2 * rows, columns, height_ratios=[3, 1] * rows)
    for place, ((method, runs), line) in enumerate(zip(methods.items(), line_styles(), strict=False)):
        row, column = divmod(place, columns)
        upper, lower = (figure.add_subplot(grid[2 * row + below, column]) for below in (0, 1))
        draw_band(upper, runs[0].datasets[dataset], n_bins, GREY)
        own = {"color": line["color"], "clip_on": False}
        for run in runs if len(runs) > 1 else []:
            upper.plot(*_bins([run], dataset, n_bins), linewidth=0.7, alpha=0.25, **own)
        upper.plot(*_bins(runs, dataset, n_bins), linewidth=1.2, marker="o", markersize=2.5, **own)
        draw_counts(lower, runs[0].datasets[dataset], n_bins)
        ece, floor = (_over(runs, dataset, f"ece_{FLOOR_BINS}{end}")[0] for end in ("", "_floor"))
        title = f"{method} ({len(runs)})\nECE {ece:.3f} (floor {floor:.3f})"
        upper.set(xlim=(0, 1), ylim=(0, 1), xticks=[0, 0.5, 1], title=title)
        upper.tick_params(labelbottom=False)
        lower.set(xlim=(0, 1), xticks=[0, 0.5, 1])
        if column == 0:
            upper.set_ylabel(f"accuracy on\n{dataset}")
            lower.set_ylabel("questions")
    legend_below(figure, upper, lower)
    return figure


def _over(runs: list[Run], dataset: str, metric: str) -> tuple[float, float | None]:
    return over_seeds([run.numbers[dataset, metric] for run in runs])


def _bins(runs: list[Run], dataset: str, n_bins: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean confidence and accuracy of the bins, of the answers of all the runs."""
    sums = np.zeros((3, n_bins))
    for run in runs:
        answers = run.datasets[dataset]
        confidence, correct = scores.confidence(answers.probs), scores.correct(answers.probs, answers.label)
        sums += bin_sums(confidence, correct, bin_index(confidence, n_bins), n_bins).numpy()
    count, confidence_sum, correct_sum = sums
    many = count >= FEW
    return confidence_sum[many] / count[many], correct_sum[many] / count[many]


@mpl.rc_context(STYLE)
def risk_coverage(comparison: Comparison) -> Figure:
    """Error rate among the answers kept on the in-distribution test set, mean and 95 % interval over the seeds.

    A few methods share one panel. More have a panel each, where the reference is dashed and all others are grey.
    """
    dataset, methods = comparison.datasets[0], comparison.methods
    curves = {method: _risks(runs, dataset) for method, runs in methods.items()}
    if len(methods) <= DIRECT:
        figure = Figure(figsize=(5.8, 3.8), layout="constrained")
        axes = figure.add_subplot()
        for (method, curve), line in zip(curves.items(), line_styles(), strict=False):
            _draw_risk(axes, curve, f"{method} (area {curve[0].mean():.3f})", line)
        axes.set(xlabel=_COVERAGE, ylabel=f"error rate on {dataset}", xlim=(0, 1), ylim=(0, None))
        name_lines(axes)
        return figure
    rows = -(-len(methods) // 4)
    columns = -(-len(methods) // rows)
    figure = Figure(figsize=(0.5 + 2.4 * columns, 0.6 + 2.3 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).flat
    for axes, (method, curve), line in zip(grid, curves.items(), line_styles(), strict=False):
        for other, (mean, _) in curves.items():
            alone = {"color": BLACK, "linestyle": "--"} if other == comparison.reference else {"color": GREY}
            if other != method:
                axes.plot(*_kept(mean), linewidth=0.8, **alone)
        _draw_risk(axes, curve, method, {"color": line["color"], "linewidth": 1.6})
        axes.set(xlim=(0, 1), ylim=(0, None), title=f"{method}\narea {curve[0].mean():.3f}")
    for axes in list(figure.axes)[len(methods) :]:
        axes.remove()
    figure.supxlabel(f"{_COVERAGE}; dashed: {comparison.reference}, grey: the others", fontsize=9)
    figure.supylabel(f"error rate on {dataset}", fontsize=9)
    return figure


_COVERAGE = "coverage (fraction answered)"
Curve = tuple[np.ndarray, np.ndarray | None]


def _risks(runs: list[Run], dataset: str) -> Curve:
    """Mean over the runs, and half of its interval where there are several."""
    risks = np.stack([_risk(run, dataset) for run in runs])
    mean, half = np.array([over_seeds(column) for column in risks.T.tolist()], dtype=float).T
    return mean, half if len(runs) > 1 else None


def _draw_risk(axes: Axes, curve: Curve, label: str, line: Mapping[str, Any]) -> None:
    mean, half = curve
    axes.plot(*_kept(mean), label=label, **line)
    if half is not None:
        coverage, low = _kept(mean - half)
        axes.fill_between(coverage, low, _kept(mean + half)[1], color=line["color"], alpha=0.15, linewidth=0)


def _kept(risk: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Coverage and risk from as many answers on as make an error rate."""
    coverage = np.arange(1, len(risk) + 1) / len(risk)
    return coverage[START - 1 :], risk[START - 1 :]


def _risk(run: Run, dataset: str) -> np.ndarray:
    answers = run.datasets[dataset]
    return risk_curve(scores.confidence(answers.probs), scores.correct(answers.probs, answers.label)).numpy()


@mpl.rc_context(STYLE)
def accuracy_ece(comparison: Comparison) -> Figure:
    """ECE against accuracy on the in-distribution test set: a small mark a run, a large one with intervals a method.

    The short line under a method is the floor of its ECE: below it lies chance. Each axis spans at least 0.1, so that
    differences that are noise look small.
    """
    dataset = comparison.datasets[0]
    figure = Figure(figsize=(5.4, 3.8), layout="constrained")
    axes = figure.add_subplot()
    for place, ((method, runs), line) in enumerate(zip(comparison.methods.items(), line_styles(), strict=False)):
        mark = {"color": line["color"], "marker": _MARKERS[place % len(_MARKERS)]}
        accuracies = [run.numbers[dataset, "accuracy"] for run in runs]
        eces = [run.numbers[dataset, f"ece_{FLOOR_BINS}"] for run in runs]
        axes.scatter(accuracies, eces, s=10, alpha=0.4, linewidths=0, **mark)
        (x, x_half), (y, y_half) = over_seeds(accuracies), over_seeds(eces)
        axes.errorbar(x, y, _within(y, y_half), _within(x, x_half), markersize=7, linewidth=1, label=method, **mark)
        floor, _ = _over(runs, dataset, f"ece_{FLOOR_BINS}_floor")
        axes.plot(x, floor, color=line["color"], marker="_", markersize=14, linestyle="none")
    axes.plot([], [], color=BLACK, marker="_", markersize=14, linestyle="none", label=_FLOOR)
    axes.set(xlabel=f"accuracy on {dataset}", ylabel=f"ECE ({FLOOR_BINS} bins)")
    axes.set_xlim(*_wide(axes.get_xlim()))
    axes.set_ylim(0, max(_SPAN, axes.get_ylim()[1]))  # matplotlib's own margin keeps marks whole
    legend_below(figure, axes)  # since intervals cross the whole picture
    return figure


def _within(value: float, half: float | None) -> list[list[float]] | None:
    """How far an interval reaches down and up within [0, 1], where accuracies and ECEs are; None without one."""
    return None if half is None else [[min(half, value)], [min(half, 1 - value)]]


def _wide(ends: tuple[float, float]) -> tuple[float, float]:
    """An axis about the same middle that spans enough."""
    middle, half = sum(ends) / 2, max(_SPAN, ends[1] - ends[0]) / 2
    return middle - half, middle + half
