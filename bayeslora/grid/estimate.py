"""What the cells of a grid will cost, from what finished cells have: seconds and memory, as their run folders say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from rich.table import Table

from bayeslora.files import run_record
from bayeslora.grid.cells import Cell
from bayeslora.grid.specification import Grid


@dataclass(frozen=True)
class Estimate:
    """What a cell will cost.

    Attributes:
        seconds: In training and prediction; loading the base comes on top.
        memory: Most bytes held.
        source: ``own`` (the cell is done), ``seeds`` (mean over finished cells that differ in the seed), ``datasets``
            (likewise in the dataset).
    """

    seconds: float
    memory: float
    source: str


def estimate(cell: Cell, cells: Sequence[Cell]) -> Estimate | None:
    """What a cell will cost, by the finished cells that are most like it; None before there is one.

    Args:
        cell: The cell.
        cells: All cells of the grid.
    """
    rows = [other for other in cells if other.method == cell.method]
    groups = {
        "own": [cell],
        "seeds": [other for other in rows if other.dataset == cell.dataset],
        "datasets": rows,
    }
    for source, group in groups.items():
        records = [record for other in group if (record := _record(other))]
        if records:
            return Estimate(fmean(map(_seconds, records)), fmean(map(_memory, records)), source)
    return None


def estimates_table(grid: Grid, cells: Sequence[Cell]) -> Table:
    """The cells, what they have done and what they will cost; below, what is left together.

    Args:
        grid: The grid of runs.
        cells: The cells of the table.
    """
    table = Table(title=f"{grid.title}: {len(cells)} cells in {grid.out}", title_justify="left")
    for name in ("cell", "status", "time", "memory", "estimated from"):
        table.add_column(name, justify="right" if name in ("time", "memory") else "left", no_wrap=name == "cell")
    left, unknown = 0.0, 0
    for cell in cells:
        found, status = estimate(cell, cells), cell.status()
        if found is None:
            unknown += status != "done"
            table.add_row(cell.key, status, "-", "-", "")
            continue
        left += found.seconds * (status != "done")
        source = {"own": "itself", "seeds": "other seeds", "datasets": "other datasets"}[found.source]
        table.add_row(cell.key, status, f"{found.seconds:,.0f} s", f"{found.memory / 2**30:.2f} GiB", source)
    more = f", and {unknown} cells without an estimate yet" if unknown else ""
    table.caption, table.caption_justify = f"left: {left:,.0f} s one after another{more}", "left"
    return table


def _record(cell: Cell) -> dict[str, Any]:
    """What a finished cell's run folder says of its cost; nothing for one that is not finished."""
    return run_record(cell.folder) if cell.done() else {}


def _seconds(record: Mapping[str, Any]) -> float:
    return float((record.get("train_seconds") or 0) + (record.get("predict_seconds") or 0))


def _memory(record: Mapping[str, Any]) -> float:
    return float(max(record.get("peak_bytes") or 0, record.get("predict_peak_bytes") or 0))
