"""Pictures of the course of a training, made from its tables; figures as in :mod:`bayeslora.results.plots`."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from bayeslora.results.dynamics import measures
from bayeslora.results.dynamics.course import Course, Epoch
from bayeslora.results.dynamics.tables import Row
from bayeslora.results.plots import BLACK, BLUE, GREEN, GREY, STYLE, VERMILLION, legend_below, line_styles, save

_NAMES = {
    "accuracy": "accuracy",
    "nll": "NLL",
    measures.ECE: "ECE (15 bins)",
    "total": "total (nats)",
    "aleatoric": "aleatoric (nats)",
    "epistemic": "epistemic (nats)",
    "one_minus_confidence": "1 - confidence",
}
_METRICS = ("accuracy", "nll", measures.ECE)
_CELLS = {"retained": BLUE, "acquired": GREEN, "forgotten": VERMILLION, "never": GREY}
_BINS = 24
_DOTS: dict[str, Any] = {"marker": ".", "markersize": 4, "clip_on": False}  # at every epoch that was followed


def save_plots(course: Course, found: Mapping[str, Any], directory: Path) -> list[Path]:
    """Save every plot of a training as PNG.

    Args:
        course: The training.
        found: What :func:`bayeslora.commands.dynamics.analyse` made of it.
        directory: Where the files go.

    Returns:
        The files written.
    """
    rows, best = found["tables"], found["best_epoch"]
    figures = {
        "quality": quality(rows["quality"], best),
        "uncertainty": uncertainty(rows["uncertainty"], best),
        "retention": retention(rows["retention"], best),
        "members": members(rows["members"]),
        "diversity": diversity(rows["diversity"], rows["uncertainty"], best),
        "signature": signature(rows["uncertainty"]),
        **{f"density-{re.sub('[^A-Za-z0-9]+', '-', name)}": density(course, name) for name in course.datasets},
    }
    if rows["detection"]:
        figures["detection"] = detection(rows["detection"], best)
    return [save(figure, directory / f"{name}.png") for name, figure in figures.items()]


@mpl.rc_context(STYLE)
def quality(rows: Sequence[Row], best: int) -> Figure:
    """Accuracy, NLL and ECE against the epoch: the ensemble, and one member with a band of one standard deviation.

    Args:
        rows: The rows of the table that is drawn.
        best: The epoch with the best validation NLL, which is marked.
    """
    groups = _by(rows, "dataset")
    figure, grid = _grid(len(_METRICS), len(groups), sharey="row")
    for column, (name, found) in enumerate(groups.items()):
        epochs = _values(found, "epoch")
        for axes, metric in zip(grid[:, column], _METRICS, strict=True):
            mean, spread = _values(found, f"{metric}_member"), _values(found, f"{metric}_member_sd")
            axes.fill_between(epochs, mean - spread, mean + spread, color=VERMILLION, alpha=0.2, linewidth=0)
            axes.plot(epochs, mean, color=VERMILLION, linestyle="--", label="one member (band: 1 sd)", **_DOTS)
            axes.plot(epochs, _values(found, metric), color=BLUE, label="ensemble", **_DOTS)
            _mark(axes, best)
        grid[0, column].set_title(name)
    _label_rows(grid, [_NAMES[metric] for metric in _METRICS])
    _legend(figure, grid[0, 0])
    return figure


@mpl.rc_context(STYLE)
def uncertainty(rows: Sequence[Row], best: int) -> Figure:
    """Mean total, aleatoric and epistemic uncertainty of each set against the epoch, with one standard error.

    Args:
        rows: The rows of the table that is drawn.
        best: The epoch with the best validation NLL, which is marked.
    """
    figure, grid = _grid(1, 3, width=3.0, height=2.6)
    for axes, kind in zip(grid[0], measures.UNCERTAINTIES, strict=True):
        for (name, found), line in zip(_by(rows, "dataset").items(), line_styles(), strict=False):
            _curve(axes, found, kind, line, name, _values(found, f"{kind}_se"))
        axes.set_title(_NAMES[kind])
        axes.set_ylim(bottom=0)
        _mark(axes, best)
    _legend(figure, grid[0, 0], "band: 1 standard error")
    return figure


@mpl.rc_context(STYLE)
def density(course: Course, dataset: str) -> Figure:
    """Joint density of mutual information and entropy with its marginals: right answers above, wrong ones below.

    Args:
        course: What was recorded epoch by epoch.
        dataset: Name of the set of questions.
    """
    chosen = _some(course)
    edges = measures.density_edges([epoch.datasets[dataset] for epoch in chosen], _BINS)
    figure = Figure(figsize=(0.7 + 2.7 * len(chosen), 5.6), layout="constrained")
    grid = figure.subplots(2, len(chosen), sharex=True, sharey=True, squeeze=False)
    for column, epoch in enumerate(chosen):
        answers = epoch.datasets[dataset]
        right = measures.right(answers)
        for axes, mask, (word, colours) in zip(grid[:, column], (right, ~right), _KINDS.items(), strict=True):
            title = f"epoch {epoch.number}: {int(mask.sum())} {word}"
            _joint(axes, answers.epistemic[mask], answers.total[mask], edges, colours, title)
    figure.supxlabel("mutual information (nats)", fontsize=9)
    figure.supylabel(f"entropy (nats), {dataset}", fontsize=9)
    return figure


_KINDS = {"right": ("Blues", BLUE), "wrong": ("Oranges", VERMILLION)}


def _joint(axes: Axes, x: Any, y: Any, edges: Any, colours: tuple[str, str], title: str) -> None:
    found = measures.joint_density(x, y, edges)
    above, beside = axes.inset_axes((0, 1.03, 1, 0.16)), axes.inset_axes((1.03, 0, 0.16, 1))
    for extra in (above, beside):
        extra.set_axis_off()
    above.set_title(title)
    axes.set(xlim=(0, edges[0][-1]), ylim=(0, edges[1][-1]))
    if found is None:
        return
    shades = np.ma.masked_equal(np.sqrt(found.T), 0)  # what is rare shows too
    axes.pcolormesh(*edges, shades, cmap=colours[0], rasterized=True)
    above.stairs(found @ np.diff(edges[1]), edges[0], fill=True, color=colours[1])
    beside.stairs(np.diff(edges[0]) @ found, edges[1], orientation="horizontal", fill=True, color=colours[1])
    above.set_xlim(axes.get_xlim())
    beside.set_ylim(axes.get_ylim())


@mpl.rc_context(STYLE)
def retention(rows: Sequence[Row], best: int) -> Figure:
    """Which fraction of the questions is retained, acquired, forgotten, never right, and which turned since before.

    Args:
        rows: The rows of the table that is drawn.
        best: The epoch with the best validation NLL, which is marked.
    """
    groups = _by(rows, "dataset")
    columns = min(4, len(groups))
    figure, grid = _grid(-(-len(groups) // columns), columns, height=2.2)
    for axes, (name, found) in zip(grid.flat, groups.items(), strict=False):
        epochs = _values(found, "epoch")
        axes.stackplot(
            epochs,
            [_values(found, cell) for cell in _CELLS],
            colors=list(_CELLS.values()),
            labels=list(_CELLS),
            alpha=0.75,
        )
        axes.plot(epochs[1:], _values(found, "flips")[1:], color=BLACK, label="turned since before", **_DOTS)
        axes.set(title=name, ylim=(0, 1), xlim=(epochs[0], epochs[-1]))
        _mark(axes, best)
    _drop(grid, len(groups))
    _label_rows(grid, ["fraction of questions"] * len(grid))
    _legend(figure, grid[0, 0])
    return figure


@mpl.rc_context(STYLE)
def detection(rows: Sequence[Row], best: int) -> Figure:
    """AUROC of each set against the first, and by how much mutual information is higher there; 95 % intervals.

    Args:
        rows: The rows of the table that is drawn.
        best: The epoch with the best validation NLL, which is marked.
    """
    groups = _by(rows, "dataset")
    figure, grid = _grid(2, len(groups), sharey="row")
    for column, (name, found) in enumerate(groups.items()):
        upper, lower = grid[:, column]
        for score, line in zip(measures.SCORES, line_styles(), strict=False):
            _curve(upper, found, score, line, _NAMES[score].removesuffix(" (nats)"), _ends(found, score))
        difference = "epistemic_difference"
        _curve(lower, found, difference, {"color": GREEN}, "", _ends(found, difference))
        for axes, level in ((upper, 0.5), (lower, 0.0)):
            axes.axhline(level, color=BLACK, linewidth=0.8, linestyle=":", label="no difference")
            _mark(axes, best)
        upper.set_title(name)
    _label_rows(grid, [f"AUROC against {rows[0]['against']}", "MI difference (nats)"])
    _legend(figure, grid[0, 0], "band: 95 % interval")
    return figure


@mpl.rc_context(STYLE)
def members(rows: Sequence[Row]) -> Figure:
    """Quality and mutual information against the number of members; bars are the spread over subsets."""
    by_epoch = _by(rows, "epoch")
    kinds = (*_METRICS, "epistemic")
    figure, grid = _grid(len(by_epoch), len(kinds), width=2.6, height=2.2, sharex=True)
    for line_of_axes, (epoch, found) in zip(grid, by_epoch.items(), strict=True):
        for axes, kind in zip(line_of_axes, kinds, strict=True):
            for (name, some), line in zip(_by(found, "dataset").items(), line_styles(), strict=False):
                spread = np.nan_to_num(_values(some, f"{kind}_sd"))
                axes.errorbar(_values(some, "members"), _values(some, kind), spread, label=name, capsize=2, **line)
            axes.set_title(f"{_NAMES[kind]}, epoch {epoch}")
            axes.margins(x=0.1)
            axes.xaxis.get_major_locator().set_params(integer=True)
    for axes in grid[-1]:
        axes.set_xlabel("members (bars: 1 sd over subsets)")
    _legend(figure, grid[0, 0])
    return figure


@mpl.rc_context(STYLE)
def diversity(cosines: Sequence[Row], uncertainties: Sequence[Row], best: int) -> Figure:
    """How far members are apart: cosines of their updates BA (range over pairs), and answers they disagree on.

    Args:
        cosines: Rows of the cosines between members.
        uncertainties: Rows of the uncertainties, with the members' disagreement.
        best: The epoch with the best validation NLL, which is marked.
    """
    figure, grid = _grid(1, 2, width=3.4, height=2.6)
    left, right = grid[0]
    if cosines:
        epochs = _values(cosines, "epoch")
        left.fill_between(epochs, _values(cosines, "lowest"), _values(cosines, "highest"), color=BLUE, alpha=0.2)
        left.plot(epochs, _values(cosines, "cosine"), color=BLUE, **_DOTS)
    else:
        left.text(0.5, 0.5, "not on file", ha="center", transform=left.transAxes)
    left.set_title("cosine of two members' BA")
    for (name, found), line in zip(_by(uncertainties, "dataset").items(), line_styles(), strict=False):
        right.plot(_values(found, "epoch"), _values(found, "disagreement"), label=name, **line, **_DOTS)
    right.set_title("two members disagree")
    for axes in (left, right):
        axes.set(xlim=right.get_xlim(), ylim=(min(0, axes.get_ylim()[0]), None))
        _mark(axes, best)
    _legend(figure, right, "band: range over pairs of members")
    return figure


@mpl.rc_context(STYLE)
def signature(rows: Sequence[Row]) -> Figure:
    """Where each set goes in the plane of mean mutual information and entropy, from the base (o) to the end (>)."""
    figure = Figure(figsize=(5.2, 3.6), layout="constrained")
    axes = figure.add_subplot()
    for (name, found), line in zip(_by(rows, "dataset").items(), line_styles(), strict=False):
        x, y = _values(found, "epistemic"), _values(found, "total")
        axes.plot(x, y, label=name, **line, **_DOTS)
        axes.plot(x[0], y[0], "o", color=line["color"], markersize=5, clip_on=False)
        axes.plot(x[-1], y[-1], ">", color=line["color"], markersize=7, clip_on=False)
    axes.plot([], [], "o", color=GREY, markersize=5, label="base model")
    axes.plot([], [], ">", color=GREY, markersize=7, label="end of training")
    axes.set(xlabel="mean mutual information (nats)", ylabel="mean entropy (nats)", ylim=(0, None))
    figure.legend(loc="outside right upper")
    return figure


def _grid(rows: int, columns: int, width: float = 2.3, height: float = 1.9, **shared: Any) -> tuple[Figure, Any]:
    figure = Figure(figsize=(0.6 + width * columns, 0.6 + height * rows), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, **shared)


def _curve(axes: Axes, rows: Sequence[Row], column: str, line: Mapping[str, Any], label: str, reach: Any) -> None:
    """A line over the epochs in a band: ``reach`` below and above it, or a pair of ends."""
    epochs, values = _values(rows, "epoch"), _values(rows, column)
    low, high = reach if isinstance(reach, tuple) else (values - reach, values + reach)
    axes.fill_between(epochs, low, high, color=line["color"], alpha=0.15, linewidth=0)
    axes.plot(epochs, values, label=label, **line, **_DOTS)


def _ends(rows: Sequence[Row], column: str) -> tuple[Any, Any]:
    return _values(rows, f"{column}_low"), _values(rows, f"{column}_high")


def _mark(axes: Axes, best: int) -> None:
    axes.axvline(best, color=GREY, linewidth=1.2, zorder=0, label="best epoch (lowest NLL)")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("epoch")


def _label_rows(grid: Any, labels: Sequence[str]) -> None:
    """A label for each row of axes, and epochs named below the last row alone."""
    for line_of_axes, label in zip(grid, labels, strict=True):
        line_of_axes[0].set_ylabel(label)
        for axes in line_of_axes:
            axes.label_outer(remove_inner_ticks=False)


def _legend(figure: Figure, axes: Axes, band: str | None = None) -> None:
    """What the lines are, below the picture and no wider than it; and what the bands are, where there are any."""
    legend_below(figure, axes, further=[(Patch(color=GREY, alpha=0.4), band)] if band else [])


def _drop(grid: Any, used: int) -> None:
    for axes in list(grid.flat)[used:]:
        axes.remove()


def _some(course: Course) -> list[Epoch]:
    """The base, the best epoch, the last, and one between the last two."""
    best, last = course.best.number, course.epochs[-1].number
    middle = min(course.numbers, key=lambda number: abs(number - (best + last) / 2))
    return [epoch for epoch in course.epochs if epoch.number in {0, best, middle, last}]


def _by(rows: Sequence[Row], column: str) -> dict[Any, list[Row]]:
    return {
        value: [row for row in rows if row[column] == value] for value in dict.fromkeys(row[column] for row in rows)
    }


def _values(rows: Sequence[Row], column: str) -> Any:
    return np.array([np.nan if row[column] is None else row[column] for row in rows], dtype=float)
