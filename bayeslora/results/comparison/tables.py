"""A comparison as tables: on the terminal, in Markdown, and as CSV with every number."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from rich.table import Table

from bayeslora.metrics.evaluate import FLOOR_BINS
from bayeslora.results.comparison.comparison import COSTS, RUN, SHARED, Comparison, Summary
from bayeslora.results.comparison.ties import LEVEL, RESAMPLES, SEED
from bayeslora.results.terminal import column_groups

_ECE = f"ece_{FLOOR_BINS}"
_FLOOR = f"ece_{FLOOR_BINS}_floor"
_UP, _DOWN = " ↑", " ↓"  # which direction is better
_HEADLINES = {
    "accuracy": ("accuracy", _UP),
    "nll": ("NLL", _DOWN),
    "brier": ("Brier", _DOWN),
    _ECE: ("ECE", _DOWN),
    _FLOOR: ("floor", ""),
    "expected_calibration_gap": ("|conf - p|", _DOWN),
    "kl": ("KL", _DOWN),
    "aurc": ("AURC", _DOWN),
    "epistemic": ("epistemic", ""),
    "entropy_correlation_total": ("rank corr.", _UP),
    "auroc_one_minus_confidence": ("AUROC conf.", _UP),
    "auroc_total": ("AUROC total", _UP),
    "auroc_epistemic": ("AUROC epist.", _UP),
}
_EXPECTED = ("accuracy", "nll", "brier")  # reported as expectations where the true probabilities are known
_STAR = "*"
_COST_TITLES = ("labels", "training", "training of another row", "prediction", "memory", "parameters")
_TERMINAL = ("accuracy", "nll", _ECE, _FLOOR, "expected_calibration_gap", "auroc_total", "auroc_epistemic")
_NAME_WIDTH, _SCORE_WIDTH, _MEAN_WIDTH, _COST_WIDTH = 4, 15, 8, 13  # characters of a cell with its rules


@dataclass(frozen=True)
class Column:
    """One number of every method, and how it is written."""

    title: str
    cells: list[Summary | None]
    show: Callable[[Summary], str]
    narrow: bool = True  # whether it is among the columns for a terminal
    best: frozenset[str] = frozenset()  # the methods that are the best, or not to be told from it


@dataclass(frozen=True)
class Grid:
    """A table before it is drawn: a row a method, and under a number its difference from the reference."""

    title: str
    methods: list[str]
    columns: list[Column]
    reference: str | None = None  # what the second line of a cell is the difference from

    def names(self, newline: str) -> list[str]:
        """What stands in front of the rows: the method, and what its second line is."""
        differs = [self.reference is not None and method != self.reference for method in self.methods]
        return [
            f"{method}{newline}minus {self.reference}" if other else method
            for method, other in zip(self.methods, differs, strict=True)
        ]


def rich_tables(comparison: Comparison, width: int) -> Iterator[Table]:
    """The main columns for a terminal of this many characters, those that do not fit in a further table.

    Args:
        comparison: The runs to compare.
        width: Characters in a line.
    """
    for grid in grids(comparison):
        columns = [column for column in grid.columns if column.narrow]
        names = grid.names("\n")
        room = width - _NAME_WIDTH - max(len(line) for name in names for line in name.split("\n"))
        for part in column_groups(columns, _width, room):
            table = Table(title=grid.title, title_justify="left", show_lines=True)
            table.add_column("", no_wrap=True)
            for column in part:
                table.add_column(column.title, justify="right")
            for row, name in enumerate(names):
                table.add_row(name, *(_cell(column, row, "\n", "[bold]{}[/bold]") for column in part))
            yield table


def _width(column: Column) -> int:
    widths: dict[Callable[[Summary], str], int] = {_show_score: _SCORE_WIDTH, _show_mean: _MEAN_WIDTH}
    return widths.get(column.show, _COST_WIDTH)


def markdown_text(comparison: Comparison, title: str = "Comparison", costs: bool = True) -> str:
    """The tables in Markdown.

    Args:
        comparison: The runs to compare.
        title: The heading.
        costs: Whether what they cost is in it too.
    """
    lines = [f"# {title}", ""]
    for grid in grids(comparison, costs):
        titles = [column.title.replace("|", "\\|") for column in grid.columns]
        lines += [f"## {grid.title}", "", f"| | {' | '.join(titles)} |", "|---" + "|--:" * len(titles) + "|"]
        for row, name in enumerate(grid.names("<br>")):
            cells = (marked(c, grid.methods[row], _cell(c, row, "<br>", "**{}**"), "<br>") for c in grid.columns)
            lines.append(f"| {name} | {' | '.join(cells)} |")
        lines.append("")
    return "\n".join([*lines, *(f"{line}\n" for line in legend(comparison))])


def marked(column: Column, method: str, cell: str, newline: str) -> str:
    """A cell in Markdown, its value in bold where the method is among the best of the column.

    Args:
        column: The column.
        method: The row.
        cell: What stands there.
        newline: What parts the value from its difference.
    """
    value, between, rest = cell.partition(newline)
    return f"**{value}**{between}{rest}" if method in column.best else cell


def csv_text(comparison: Comparison, costs: bool = True) -> str:
    """Every number of every method and dataset, a line each.

    Args:
        comparison: The runs to compare.
        costs: Whether what they cost is in it too.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    head = ["dataset", "metric", "method", "runs", "mean", "half_width_95"]
    writer.writerow([*head, "reference", "pairs", "difference", "difference_half_width_95"])
    for dataset, metric in dict.fromkeys(key for run in comparison.runs for key in run.numbers):
        for method in comparison.methods:
            found = comparison.summary(method, dataset, metric)
            if found is not None and (costs or dataset != RUN):
                against = [comparison.reference, found.pairs, found.difference, found.difference_half]
                writer.writerow([dataset, metric, method, found.runs, found.mean, found.half, *against])
    return text.getvalue()


def grids(comparison: Comparison, costs: bool = True) -> Iterator[Grid]:
    """The tables of a comparison: of each dataset its scores and its decisions; and, if asked, what the runs cost.

    Args:
        comparison: The runs to compare.
        costs: Whether what they cost is in it too.
    """
    present = dict.fromkeys(key for run in comparison.runs for key in run.numbers)
    methods = list(comparison.methods)

    def column(dataset: str, metric: str, title: str, show: Callable[[Summary], str], narrow: bool = True) -> Column:
        """A column of one metric: every method's summary, and which is best."""
        cells = [comparison.summary(method, dataset, metric) for method in methods]
        return Column(title, cells, show, narrow, comparison.best(dataset, metric))

    for dataset in comparison.datasets:
        known = (dataset, "expected_nll") in present
        columns = []
        for metric, (title, better) in _HEADLINES.items():
            expected = known and metric in _EXPECTED
            if (dataset, metric) in present:
                show = _show_mean if metric == _FLOOR else _show_score
                title += _STAR * expected + better
                columns.append(column(dataset, "expected_" * expected + metric, title, show, metric in _TERMINAL))
        yield Grid(dataset, methods, columns, comparison.reference)
        decided = _decisions(metric for where, metric in present if where == dataset)
        decisions = [column(dataset, metric, title, show) for metric, title, show in decided]
        yield Grid(f"{dataset}: decisions", methods, decisions, comparison.reference)
    if not costs:
        return
    shows = (_show_count, _show_seconds, _show_seconds, _show_seconds, _show_bytes, _show_count)
    costed = [
        cost for cost in zip(COSTS, _COST_TITLES, shows, strict=True) if cost[0] != SHARED or (RUN, SHARED) in present
    ]
    yield Grid("cost", methods, [column(RUN, *cost) for cost in costed])


def _decisions(metrics: Iterable[str]) -> Iterator[tuple[str, str, Callable[[Summary], str]]]:
    """Metric, title and writing of the columns about decisions: what could be answered, what was, the sets."""
    for metric in metrics:
        for pattern, (title, show) in _DECISIONS.items():
            if found := re.fullmatch(pattern, metric):
                yield metric, title.format(found[1]), show


def _cell(column: Column, row: int, newline: str, bold: str) -> str:
    found = column.cells[row]
    if found is None:
        return "-"
    text, difference = column.show(found), difference_text(column, found)
    if difference is None:
        return text
    return text + newline + (bold.format(difference) if found.clear else difference)


def difference_text(column: Column, found: Summary) -> str | None:
    """A number's difference from the reference; None for the reference itself and for what is no score.

    Args:
        column: Its column.
        found: The number.
    """
    if found.difference is None or column.show is not _show_score:
        return None
    return f"{found.difference:+.3f}{_half(found.difference_half)}"


def _show_kept(found: Summary) -> str:
    return f"{found.mean * found.runs:.0f} of {found.runs}"


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


_DECISIONS: dict[str, tuple[str, Callable[[Summary], str]]] = {
    r"coverage_at_(.+)": ("at {} % error" + _UP, _show_score),
    r"answered_([^_]+)": ("answered {} %" + _UP, _show_score),
    r"answered_(.+)_error": ("error {} %" + _DOWN, _show_score),
    r"answered_(.+)_kept": ("kept {} %", _show_kept),
    r"set_(.+)_size": ("size {}" + _DOWN, _show_score),
    r"set_(.+)_missed": ("missed {}" + _DOWN, _show_score),
}


BEST = (
    "A value is bold where its row is the best of the column or not to be told from it: differences of the rows over "
    "their standard errors over questions, each question averaged over the seeds, against a normal law; Holm's "
    f"procedure over all pairs of rows of the column at {100 * LEVEL:g} %. Of an ECE the standard error is that of a "
    f"bootstrap of the questions ({RESAMPLES} resamples, seed {SEED}). How much another set of training seeds would "
    "change is not in it. Accuracy, NLL, Brier, ECE, |conf - p| and KL are marked; a row with fewer seeds than another "
    "is not."
)


def legend(comparison: Comparison) -> list[str]:
    """What the tables mean, a sentence or two a line."""
    counts = sorted({len(runs) for runs in comparison.methods.values()})
    runs = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    lines = [
        f"Mean ± half of the 95 % t interval over seeds ({runs} a method); below it the difference from "
        f"{comparison.reference}, paired by seed, bold where its interval leaves out zero. "
        "Arrows: the better direction.",
        "The floor of an ECE is what a perfectly calibrated predictor with these confidences would show. AUROC: this "
        f"set against {comparison.datasets[0]}.",
    ]
    lines.append(
        "At r % error: the largest fraction of the questions, the most confident ones, of which at most r % are wrong, "
        "found with hindsight."
    )
    if any(metric.startswith("answered_") for run in comparison.runs for _, metric in run.numbers):
        lines.append(
            "Answered r %: the fraction answered at the threshold that each run promises r % errors at; error: of "
            "these answers; kept: in how many runs that was at most r %. Each promise holds for one method and one "
            f"risk; to pick the best of {len(comparison.methods)} afterwards multiplies delta by as much. It is about "
            f"the population of {comparison.datasets[0]} and void on other sets. Size: options in a prediction set; "
            "missed: sets without the right option."
        )
    if any(metric == "expected_nll" for run in comparison.runs for _, metric in run.numbers):
        lines.append(
            "(*) Expected under the true probabilities, which takes label noise out. Rank corr.: Spearman's, of the "
            "total uncertainty with the entropy of the true answer, over questions."
        )
    if len(comparison.methods) > 1:
        lines.append(BEST)
    labels = [comparison.summary(method, RUN, "labels") for method in comparison.methods]
    if len({found.mean for found in labels if found is not None}) > 1:
        lines.append("The methods did not use the same number of labels.")
    return lines
