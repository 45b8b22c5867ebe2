"""Pictures of a run, made from its predictions alone: is it calibrated, and does it know what it does not know?

Every function returns a ``matplotlib.figure.Figure`` that belongs to no window, so that it works without a display and
can be changed before it is saved. The first seven colours are those of Okabe and Ito, which differ for every kind of
colour vision, the others of Tol's muted scheme; lines also differ in style, so that a print in grey can be read.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from bayeslora.files import replacing
from bayeslora.metrics import scores
from bayeslora.metrics.answers import Answers
from bayeslora.metrics.bins import CorrectCount, bin_index, bin_sums, ece_floor
from bayeslora.metrics.calibration import ECE
from bayeslora.metrics.evaluate import uncertainty_scores
from bayeslora.metrics.ranking import auroc
from bayeslora.metrics.selective import risk_curve

BLUE, ORANGE, GREEN, VERMILLION, PURPLE, SKY, BLACK = (
    "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#000000",
)  # fmt: skip
GREY = "#BBBBBB"
_MUTED = ("#882255", "#999933", "#332288", "#44AA99", "#AA4499")
_COLOURS = (BLUE, VERMILLION, GREEN, ORANGE, PURPLE, SKY, BLACK, *_MUTED)
_STYLES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (8, 2)), (0, (1, 1)))
STYLE: Any = {
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
}
_BAND = 0.95
_CHARACTERS, _MARK = 15.5, 8  # that fit into an inch, and those that a line's mark takes
_LINE_HEIGHT = 0.11  # of a name of two lines, in heights of a plot
DIRECT = 4  # lines that are named at their ends; more get a legend
FEW = 10  # questions in a bin, below which its accuracy says little
START = 20  # questions, below which an error rate is left out of a curve
_TITLES = {
    "one_minus_confidence": "1 - confidence",
    "total": "total uncertainty (nats)",
    "aleatoric": "aleatoric uncertainty (nats)",
    "epistemic": "epistemic uncertainty (nats)",
}


def save_plots(datasets: Mapping[str, Answers], directory: Path) -> list[Path]:
    """Save every plot of a run as PNG.

    Args:
        datasets: Name to answers, the in-distribution test set first.
        directory: Where the files go.

    Returns:
        The files written.
    """
    first, *others = datasets
    figures = {
        "reliability": reliability(datasets),
        "risk_coverage": risk_coverage(datasets),
        "uncertainty_right_wrong": uncertainty_right_wrong(datasets[first], first),
    }
    if others:
        figures["uncertainty_datasets"] = uncertainty_datasets(datasets)
    return [save(figure, directory / f"{name}.png") for name, figure in figures.items()]


def save(figure: Figure, path: Path) -> Path:
    """Save a figure as PNG, whole or not at all.

    Args:
        figure: The figure, which is closed.
        path: The file to write.
    """
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=200)
    return path


@mpl.rc_context(STYLE)
def reliability(datasets: Mapping[str, Answers], n_bins: int = 15) -> Figure:
    """Accuracy against confidence in right-closed bins, a panel a dataset, with the number of questions in each bin.

    The band holds the accuracy of a bin with 95 % probability if every confidence in it is the chance of being right
    (exactly: the count of right answers is then Poisson-binomial), so a point outside it is no accident. Bins of fewer
    than 10 questions say little; they are hollow and have no band.

    Args:
        datasets: Answers by name of the dataset.
        n_bins: Number of bins of confidence.
    """
    rows = -(-len(datasets) // 4)
    columns = -(-len(datasets) // rows)
    figure = Figure(figsize=(0.5 + 2.5 * columns, 0.4 + 3.6 * rows), layout="constrained")
    grid = figure.add_gridspec(2 * rows, columns, height_ratios=[3, 1] * rows)
    for place, (name, answers) in enumerate(datasets.items()):
        row, column = divmod(place, columns)
        upper = figure.add_subplot(grid[2 * row, column])
        lower = figure.add_subplot(grid[2 * row + 1, column], sharex=upper)
        draw_reliability(upper, answers, n_bins)
        draw_counts(lower, answers, n_bins)
        upper.set_title(f"{name}\n{upper.get_title()}")
        upper.tick_params(labelbottom=False)
        if column == 0:
            upper.set_ylabel("accuracy")
            lower.set_ylabel("questions")
    legend_below(figure, upper, lower)
    return figure


def legend_below(figure: Figure, *axes: Axes, further: Sequence[tuple[Any, str]] = ()) -> None:
    """What the lines of some axes are, below the picture and no wider than it.

    Args:
        figure: The picture.
        axes: Axes whose lines have names.
        further: Further marks and their names.
    """
    found = [pair for each in axes for pair in zip(*each.get_legend_handles_labels(), strict=True)]
    handles, labels = zip(*found, *further, strict=True)
    columns = int(figure.get_figwidth() * _CHARACTERS) // (_MARK + max(map(len, labels)))
    figure.legend(handles, labels, loc="outside lower center", ncols=max(1, min(len(labels), columns)))


def draw_reliability(axes: Axes, answers: Answers, n_bins: int) -> None:
    """Draw one reliability diagram, with the ECE and its floor as title.

    Args:
        axes: The axes to draw on.
        answers: What a method predicted for N questions, with their labels.
        n_bins: Number of bins of confidence.
    """
    confidence, correct = scores.confidence(answers.probs), scores.correct(answers.probs, answers.label)
    index = bin_index(confidence, n_bins)
    count, confidence_sum, correct_sum = bin_sums(confidence, correct, index, n_bins).numpy()
    mean, accuracy = confidence_sum / count.clip(1), correct_sum / count.clip(1)
    many, few = (count >= FEW).nonzero()[0], ((count > 0) & (count < FEW)).nonzero()[0]
    draw_band(axes, answers, n_bins)
    axes.vlines(mean[many], accuracy[many], mean[many], color=BLUE, linewidth=1)
    axes.scatter(mean[many], accuracy[many], 18, BLUE, label="accuracy of a bin", zorder=3, clip_on=False)
    axes.scatter(mean[few], accuracy[few], 10, "none", edgecolors=BLUE, linewidths=0.7, zorder=3, clip_on=False)
    ece, floor = float(ECE(n_bins)(answers.probs, answers.label)), float(ece_floor(confidence, n_bins))
    axes.set(xlim=(0, 1), ylim=(0, 1), title=f"ECE {ece:.3f} (floor {floor:.3f})")


def draw_band(axes: Axes, answers: Answers, n_bins: int, colour: str = SKY) -> None:
    """Draw where the accuracy of each bin of 10 questions or more lies if its confidences are true.

    Args:
        axes: The axes to draw on.
        answers: What a method predicted for N questions, with their labels.
        n_bins: Number of bins of confidence.
        colour: Colour of the band.
    """
    confidence = scores.confidence(answers.probs)
    index = bin_index(confidence, n_bins)
    count = torch.bincount(index, minlength=n_bins).numpy()
    many = (count >= FEW).nonzero()[0]
    bounds = [CorrectCount.of(confidence[index == b]).interval(_BAND) for b in many.tolist()]
    low, high = np.array(bounds).reshape(-1, 2).T / count[many]
    axes.plot([0, 1], [0, 1], color=BLACK, linewidth=0.8, linestyle=":")
    band: dict[str, Any] = {"color": colour, "alpha": 0.4, "linewidth": 0, "label": "95 % if calibrated"}
    axes.bar(many / n_bins, high - low, 1 / n_bins, low, align="edge", **band)


def draw_counts(axes: Axes, answers: Answers, n_bins: int) -> None:
    """Draw how many questions are in each bin, with mean confidence and accuracy as lines.

    Args:
        axes: The axes to draw on.
        answers: What a method predicted for N questions, with their labels.
        n_bins: Number of bins of confidence.
    """
    confidence, correct = scores.confidence(answers.probs), scores.correct(answers.probs, answers.label)
    count = torch.bincount(bin_index(confidence, n_bins), minlength=n_bins).numpy()
    bar: dict[str, Any] = {"color": GREY, "edgecolor": "white", "linewidth": 0.4}
    axes.bar(np.arange(n_bins) / n_bins, count, 1 / n_bins, align="edge", **bar)
    axes.axvline(float(correct.double().mean()), color=BLUE, linewidth=1.4, label="accuracy of all")
    axes.axvline(float(confidence.mean()), color=VERMILLION, linewidth=1.4, linestyle="--", label="mean confidence")
    axes.set_xlabel("confidence")


@mpl.rc_context(STYLE)
def risk_coverage(datasets: Mapping[str, Answers]) -> Figure:
    """Error rate among the answers kept, against the fraction kept, if the least confident are declined first.

    The area under the curve is that of all coverages; the picture leaves out those of fewer than 20 questions.
    """
    figure = Figure(figsize=(4.8, 3.4), layout="constrained")
    axes = figure.add_subplot()
    for (name, answers), line in zip(datasets.items(), line_styles(), strict=False):
        risk = risk_curve(scores.confidence(answers.probs), scores.correct(answers.probs, answers.label))
        coverage = np.arange(1, len(risk) + 1) / len(risk)
        axes.plot(coverage[START - 1 :], risk.numpy()[START - 1 :], label=f"{name} (area {risk.mean():.3f})", **line)
    axes.set(xlabel="coverage (fraction answered)", ylabel="error rate", xlim=(0, 1), ylim=(0, None))
    name_lines(axes)
    return figure


def name_lines(axes: Axes) -> None:
    """Write the names of a few lines at their right ends, in their colours; of more lines make a legend."""
    lines = [line for line in axes.lines if not str(line.get_label()).startswith("_") and np.size(line.get_xdata())]
    if len(lines) > DIRECT:
        axes.legend()
        return
    low, high = axes.get_ylim()
    ends = sorted(((float(np.asarray(line.get_ydata())[-1]) - low) / (high - low), n) for n, line in enumerate(lines))
    place = -1.0
    for end, number in ends:
        line, place = lines[number], max(end, place + _LINE_HEIGHT)
        text = str(line.get_label()).replace(" (", "\n(", 1)
        axes.text(1.02, place, text, color=line.get_color(), va="center", transform=axes.transAxes, fontsize=8)


def line_styles() -> Iterator[dict[str, Any]]:
    """Colour and style of the first, second, ... line; colours repeat after 12 lines, the two together after 84."""
    for turn in cycle(range(len(_STYLES))):
        for place, colour in enumerate(_COLOURS):
            yield {"color": colour, "linestyle": _STYLES[(place + turn) % len(_STYLES)], "linewidth": 1.4}


@mpl.rc_context(STYLE)
def uncertainty_right_wrong(answers: Answers, name: str) -> Figure:
    """How uncertain the method was of what it got right and of what it got wrong.

    Args:
        answers: What a method predicted for N questions, with their labels.
        name: The dataset's name.
    """
    right = scores.correct(answers.probs, answers.label)
    figure = Figure(figsize=(9.2, 2.8), layout="constrained")
    panels = _score_panels(figure)
    for score, values in uncertainty_scores(answers).items():
        groups = {"right": values[right], "wrong": values[~right]}
        title = f"wrong from right: AUROC {auroc(values, ~right):.3f}"
        _histograms(panels[score], groups, title, _why_zero(answers))
    figure.suptitle(f"{name}: {int(right.sum())} right, {int((~right).sum())} wrong", fontsize=9)
    legend_below(figure, next(iter(panels.values())))
    return figure


@mpl.rc_context(STYLE)
def uncertainty_datasets(datasets: Mapping[str, Answers]) -> Figure:
    """How uncertain the method was of the in-distribution questions and of all others."""
    figure = Figure(figsize=(9.2, 2.8), layout="constrained")
    panels = _score_panels(figure)
    by_dataset = {name: uncertainty_scores(answers) for name, answers in datasets.items()}
    for score, axes in panels.items():
        groups = {name: values[score] for name, values in by_dataset.items()}
        _histograms(axes, groups, "", _why_zero(next(iter(datasets.values()))))
    legend_below(figure, next(iter(panels.values())))
    return figure


def _score_panels(figure: Figure) -> dict[str, Axes]:
    panels = dict(zip(_TITLES, figure.subplots(1, len(_TITLES)), strict=True))
    for score, axes in panels.items():
        axes.set_xlabel(_TITLES[score])
        axes.set_yscale("function", functions=(np.sqrt, np.square))
        axes.set_yticks([])
    panels["one_minus_confidence"].set_ylabel("fraction (square-root scale)")
    return panels


def _why_zero(answers: Answers) -> str:
    return "one network:\nit has no members\nthat could disagree" if answers.n_members == 1 else "the members agree"


def _histograms(axes: Axes, groups: Mapping[str, Tensor], title: str, why_zero: str) -> None:
    """The first group filled, the others as outlines on top; where all values are zero, why they are."""
    highest = max((float(values.max()) for values in groups.values() if len(values)), default=0.0)
    axes.set_title(title)
    if highest == 0:
        axes.text(0.5, 0.5, f"all zero: {why_zero}", ha="center", transform=axes.transAxes)
        axes.set_xticks([])
        return
    edges = np.linspace(0, highest, 25).tolist()
    for place, ((name, values), line) in enumerate(zip(groups.items(), line_styles(), strict=False)):
        kind: dict[str, Any] = {"histtype": "stepfilled", "color": GREY} if place == 0 else {"histtype": "step", **line}
        weights = np.full(len(values), 1 / max(len(values), 1))
        axes.hist(values.numpy(), edges, weights=weights, label=name, **kind)
    axes.set_ylim(bottom=0)
