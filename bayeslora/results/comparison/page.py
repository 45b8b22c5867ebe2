"""Comparisons as one page that needs nothing beside itself: sortable tables, pictures, light and dark, no network."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader

from bayeslora.results.comparison.comparison import Comparison
from bayeslora.results.comparison.published import Published
from bayeslora.results.comparison.tables import Grid, difference_text, grids, legend

TEMPLATE = "page.html.jinja"
_ALT = {
    "reliability": "Accuracy against confidence in bins, a panel a method; its numbers: columns ECE and floor",
    "risk_coverage": "Error rate against the fraction of questions answered; the areas are in the column AURC",
    "accuracy_ece": "ECE against accuracy, a mark a run; the numbers are in the columns accuracy and ECE",
}


@dataclass(frozen=True)
class Section:
    """One comparison on a page.

    Attributes:
        title: Its heading.
        comparison: The runs.
        pictures: Its PNG files.
        costs: Whether what the runs cost is shown too; it differs from time to time, all else is as the runs are.
    """

    title: str
    comparison: Comparison
    pictures: Sequence[Path] = ()
    costs: bool = True


def page(
    title: str, sections: Sequence[Section], notes: Sequence[str] = (), published: Sequence[Published] = ()
) -> str:
    """The page as HTML.

    Args:
        title: Its heading.
        sections: What is compared.
        notes: Sentences below the heading.
        published: Published numbers beside ours, see :mod:`bayeslora.results.comparison.published`.
    """
    # Names, paths and questions come from anybody: everything is escaped.
    templates = Environment(loader=PackageLoader("bayeslora.results.comparison", "."), autoescape=True)
    shown = [
        {
            "title": section.title,
            "tables": [_table(grid) for grid in grids(section.comparison, section.costs) if grid.columns],
            "legend": legend(section.comparison),
            "pictures": [_picture(file) for file in section.pictures],
        }
        for section in sections
    ]
    return templates.get_template(TEMPLATE).render(title=title, sections=shown, notes=notes, published=published)


def _table(grid: Grid) -> Mapping[str, Any]:
    rows = []
    for place, method in enumerate(grid.methods):
        cells = []
        for column in grid.columns:
            found = column.cells[place]
            cells.append(
                {
                    "value": "" if found is None else repr(found.mean),
                    "text": "-" if found is None else column.show(found),
                    "difference": None if found is None else difference_text(column, found),
                    "is_clear": found is not None and found.clear,
                    "best": method in column.best,
                }
            )
        rows.append({"method": method, "cells": cells})
    return {"title": grid.title, "columns": [c.title for c in grid.columns], "rows": rows, "reference": grid.reference}


def _picture(file: Path) -> Mapping[str, str]:
    data = base64.b64encode(file.read_bytes()).decode()
    return {"data": f"data:image/png;base64,{data}", "alt": _ALT.get(file.stem, file.stem.replace("_", " "))}
