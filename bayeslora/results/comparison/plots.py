"""Pictures of a comparison: calibration of every run, risk against coverage, accuracy against ECE."""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from bayeslora.metrics import scores
from bayeslora.metrics.bins import bin_index, bin_sums
from bayeslora.metrics.evaluate import FLOOR_BINS
from bayeslora.metrics.intervals import over_seeds
from bayeslora.metrics.selective import risk_curve
from bayeslora.results.comparison.comparison import Comparison, Run
from bayeslora.results.plots import BLACK, FEW, START, STYLE, line_styles, save

_MARKERS = "osD^vPX<>*"
_FLOOR = "floor of the ECE"
_LEGEND, _MARK = 84, 8  # characters that fit below a picture, and those that a line's mark takes


def save_plots(comparison: Comparison, directory: Path) -> list[Path]:
    """Save every plot of a comparison as PNG; returns the files."""
    figures = {
        "reliability": reliability(comparison),
        "risk_coverage": risk_coverage(comparison),
        "accuracy_ece": accuracy_ece(comparison),
    }
    return [save(figure, directory / f"{name}.png") for name, figure in figures.items()]


@mpl.rc_context(STYLE)
def reliability(comparison: Comparison, n_bins: int = FLOOR_BINS) -> Figure:
    """Accuracy against confidence on the in-distribution test set, a panel a method and a line a run.

    Bins of fewer than 10 questions are left out.
    """
    methods, dataset = comparison.methods, comparison.datasets[0]
    rows = -(-len(methods) // 4)
    columns = -(-len(methods) // rows)
    figure = Figure(figsize=(0.5 + 2.4 * columns, 0.3 + 2.7 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).flat
    for axes, (method, runs), line in zip(grid, methods.items(), line_styles(), strict=False):
        axes.plot([0, 1], [0, 1], color=BLACK, linewidth=0.8, linestyle=":")
        for run in runs:
            confidence, accuracy = _bins(run, dataset, n_bins)
            axes.plot(confidence, accuracy, color=line["color"], linewidth=0.9, alpha=0.6, marker="o", markersize=2)
        ece, floor = (_over(runs, dataset, f"ece_{FLOOR_BINS}{end}")[0] for end in ("", "_floor"))
        axes.set(
            xlim=(0, 1),
            ylim=(0, 1),
            xticks=[0, 0.5, 1],
            title=f"{method} ({len(runs)})\nECE {ece:.3f} (floor {floor:.3f})",
        )
    for axes in list(figure.axes)[len(methods) :]:
        axes.remove()
    figure.supxlabel("confidence", fontsize=9)
    figure.supylabel(f"accuracy on {dataset}", fontsize=9)
    return figure


def _over(runs: list[Run], dataset: str, metric: str) -> tuple[float, float | None]:
    return over_seeds([run.numbers[dataset, metric] for run in runs])


def _bins(run: Run, dataset: str, n_bins: int) -> tuple[np.ndarray, np.ndarray]:
    answers = run.datasets[dataset]
    confidence, correct = scores.confidence(answers.probs), scores.correct(answers.probs, answers.label)
    count, confidence_sum, correct_sum = bin_sums(confidence, correct, bin_index(confidence, n_bins), n_bins).numpy()
    many = count >= FEW
    return confidence_sum[many] / count[many], correct_sum[many] / count[many]


@mpl.rc_context(STYLE)
def risk_coverage(comparison: Comparison) -> Figure:
    """Error rate among the answers kept on the in-distribution test set, mean and 95 % interval over the seeds."""
    dataset = comparison.datasets[0]
    figure = Figure(figsize=(5.4, 3.8), layout="constrained")
    axes = figure.add_subplot()
    for (method, runs), line in zip(comparison.methods.items(), line_styles(), strict=False):
        risks = np.stack([_risk(run, dataset) for run in runs])
        mean, half = np.array([over_seeds(column) for column in risks.T.tolist()], dtype=float).T
        coverage = np.arange(1, risks.shape[1] + 1) / risks.shape[1]
        kept = slice(START - 1, None)
        axes.plot(coverage[kept], mean[kept], label=f"{method} (area {mean.mean():.3f})", **line)
        if len(runs) > 1:
            low, high = (mean - half)[kept], (mean + half)[kept]
            axes.fill_between(coverage[kept], low, high, color=line["color"], alpha=0.15, linewidth=0)
    axes.set(xlabel="coverage (fraction answered)", ylabel=f"error rate on {dataset}", xlim=(0, 1), ylim=(0, None))
    axes.legend()
    return figure


def _risk(run: Run, dataset: str) -> np.ndarray:
    answers = run.datasets[dataset]
    return risk_curve(scores.confidence(answers.probs), scores.correct(answers.probs, answers.label)).numpy()


@mpl.rc_context(STYLE)
def accuracy_ece(comparison: Comparison) -> Figure:
    """ECE against accuracy on the in-distribution test set: a small mark a run, a large one with intervals a method.

    The short line under a method is the floor of its ECE: below it lies chance.
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
        axes.errorbar(x, y, y_half, x_half, markersize=7, linewidth=1, label=method, **mark)
        floor, _ = _over(runs, dataset, f"ece_{FLOOR_BINS}_floor")
        axes.plot(x, floor, color=line["color"], marker="_", markersize=14, linestyle="none")
    axes.plot([], [], color=BLACK, marker="_", markersize=14, linestyle="none", label=_FLOOR)
    axes.set(xlabel=f"accuracy on {dataset}", ylabel=f"ECE ({FLOOR_BINS} bins)", ylim=(0, None))
    columns = max(1, min(3, _LEGEND // (_MARK + max(map(len, [*comparison.methods, _FLOOR])))))
    figure.legend(loc="outside lower center", ncols=columns)  # below, since intervals cross the whole picture
    return figure
