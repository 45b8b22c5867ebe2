"""A comparison as tables: on the terminal, in Markdown, and as CSV with every number."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from rich.table import Table

from bayeslora.metrics.evaluate import FLOOR_BINS
from bayeslora.results.comparison.comparison import COSTS, RUN, Comparison, Summary
from bayeslora.results.terminal import fitting

_ECE = f"ece_{FLOOR_BINS}"
_FLOOR = f"ece_{FLOOR_BINS}_floor"
_HEADLINES = {
    "accuracy": "accuracy",
    "nll": "NLL",
    "brier": "Brier",
    _ECE: "ECE",
    _FLOOR: "floor",
    "expected_calibration_gap": "|conf - p|",
    "kl": "KL",
    "aurc": "AURC",
    "epistemic": "epistemic",
    "entropy_correlation_total": "rank corr.",
    "auroc_one_minus_confidence": "AUROC conf.",
    "auroc_total": "AUROC total",
    "auroc_epistemic": "AUROC epist.",
}
_EXPECTED = ("accuracy", "nll", "brier")  # reported as expectations where the true probabilities are known
_STAR = "*"
_COST_TITLES = ("labels", "training", "prediction", "memory", "parameters")
_TERMINAL = ("accuracy", "NLL", "ECE", "floor", "|conf - p|", "AUROC total", "AUROC epist.", *_COST_TITLES)
_NAME_WIDTH, _SCORE_WIDTH, _MEAN_WIDTH, _COST_WIDTH = 4, 15, 8, 13  # characters of a cell with its rules


@dataclass(frozen=True)
class _Column:
    """One number of every method, and how it is written."""

    title: str
    cells: list[Summary | None]
    show: Callable[[Summary], str]


@dataclass(frozen=True)
class _Grid:
    """A table before it is drawn: a row a method, and under a number its difference from the reference."""

    title: str
    methods: list[str]
    columns: list[_Column]


def rich_tables(comparison: Comparison, width: int) -> Iterator[Table]:
    """The main columns for a terminal of this many characters, those that do not fit in a further table."""
    for grid in _grids(comparison):
        columns = [column for column in grid.columns if column.title.rstrip(_STAR) in _TERMINAL]
        room = width - _NAME_WIDTH - max(len(name) for name in grid.methods)
        for part in fitting(columns, _width, room):
            table = Table(title=grid.title, title_justify="left", show_lines=True)
            table.add_column("", no_wrap=True)
            for column in part:
                table.add_column(column.title, justify="right")
            for row, method in enumerate(grid.methods):
                table.add_row(method, *(_cell(column, row, "\n", "[bold]{}[/bold]") for column in part))
            yield table


def _width(column: _Column) -> int:
    widths: dict[Callable[[Summary], str], int] = {_show_score: _SCORE_WIDTH, _show_mean: _MEAN_WIDTH}
    return widths.get(column.show, _COST_WIDTH)


def markdown_text(comparison: Comparison) -> str:
    """The tables in Markdown."""
    lines = ["# Comparison", ""]
    for grid in _grids(comparison):
        titles = [column.title.replace("|", "\\|") for column in grid.columns]
        lines += [f"## {grid.title}", "", f"| | {' | '.join(titles)} |", "|---" + "|--:" * len(titles) + "|"]
        for row, method in enumerate(grid.methods):
            lines.append(f"| {method} | {' | '.join(_cell(c, row, '<br>', '**{}**') for c in grid.columns)} |")
        lines.append("")
    return "\n".join([*lines, *(f"{line}\n" for line in legend(comparison))])


def csv_text(comparison: Comparison) -> str:
    """Every number of every method and dataset, a line each."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    head = ["dataset", "metric", "method", "runs", "mean", "half_width_95"]
    writer.writerow([*head, "reference", "pairs", "difference", "difference_half_width_95"])
    for dataset, metric in dict.fromkeys(key for run in comparison.runs for key in run.numbers):
        for method in comparison.methods:
            found = comparison.summary(method, dataset, metric)
            if found is not None:
                against = [comparison.reference, found.pairs, found.difference, found.difference_half]
                writer.writerow([dataset, metric, method, found.runs, found.mean, found.half, *against])
    return text.getvalue()


def _grids(comparison: Comparison) -> Iterator[_Grid]:
    present = dict.fromkeys(key for run in comparison.runs for key in run.numbers)
    methods = list(comparison.methods)

    def column(dataset: str, metric: str, title: str, show: Callable[[Summary], str]) -> _Column:
        return _Column(title, [comparison.summary(method, dataset, metric) for method in methods], show)

    for dataset in comparison.datasets:
        known = (dataset, "expected_nll") in present
        columns = []
        for metric, title in _HEADLINES.items():
            expected = known and metric in _EXPECTED
            if (dataset, metric) in present:
                show = _show_mean if metric == _FLOOR else _show_score
                columns.append(column(dataset, "expected_" * expected + metric, title + _STAR * expected, show))
        yield _Grid(dataset, methods, columns)
    shows = (_show_count, _show_seconds, _show_seconds, _show_bytes, _show_count)
    yield _Grid("cost", methods, [column(RUN, *cost) for cost in zip(COSTS, _COST_TITLES, shows, strict=True)])


def _cell(column: _Column, row: int, newline: str, bold: str) -> str:
    found = column.cells[row]
    if found is None:
        return "-"
    text = column.show(found)
    if found.difference is None or column.show is not _show_score:
        return text
    difference = f"{found.difference:+.3f}{_half(found.difference_half)}"
    return text + newline + (bold.format(difference) if found.clear else difference)


def _half(half: float | None) -> str:
    return "" if half is None else f" ±{half:.3f}".replace("±0.", "±.")


def _show_score(found: Summary) -> str:
    return f"{found.mean:.3f}{_half(found.half)}"


def _show_mean(found: Summary) -> str:
    return f"{found.mean:.3f}"


def _show_count(found: Summary) -> str:
    return f"{found.mean:,.0f}"


def _show_seconds(found: Summary) -> str:
    return f"{found.mean:,.1f} s"


def _show_bytes(found: Summary) -> str:
    return f"{found.mean / 2**30:,.2f} GiB"


def legend(comparison: Comparison) -> list[str]:
    """What the tables mean, a sentence or two a line."""
    counts = sorted({len(runs) for runs in comparison.methods.values()})
    runs = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    lines = [
        f"Mean ± half of the 95 % t interval over seeds ({runs} a method); below it the difference from "
        f"{comparison.reference}, paired by seed, bold where its interval leaves out zero.",
        "The floor of an ECE is what a perfectly calibrated predictor with these confidences would show. AUROC: this "
        f"set against {comparison.datasets[0]}.",
    ]
    if any(metric == "expected_nll" for run in comparison.runs for _, metric in run.numbers):
        lines.append(
            "(*) Expected under the true probabilities, which takes label noise out. Rank corr.: Spearman's, of the "
            "total uncertainty with the entropy of the true answer, over questions."
        )
    labels = [comparison.summary(method, RUN, "labels") for method in comparison.methods]
    if len({found.mean for found in labels if found is not None}) > 1:
        lines.append("The methods did not use the same number of labels.")
    return lines
