"""The page of a grid and its tables as files: what follows from the runs, and beside it what they cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from bayeslora.files import replacing
from bayeslora.grid.specification import Grid
from bayeslora.results.comparison.comparison import Comparison
from bayeslora.results.comparison.latex import latex_text
from bayeslora.results.comparison.page import Section, page
from bayeslora.results.comparison.plots import save_plots
from bayeslora.results.comparison.published import read_published
from bayeslora.results.comparison.tables import csv_text, markdown_text


def write_page(grid: Grid, comparisons: Mapping[str, Comparison], missing: Sequence[str] = ()) -> list[Path]:
    """Write ``index.html``, and of each dataset ``.md``, ``.csv``, ``.tex`` and pictures, into ``tables/``.

    The same runs give the same files to the last byte, whatever interrupted them. What they cost differs from time to
    time, and stands in ``costs-<dataset>.csv``.

    Args:
        grid: The grid.
        comparisons: By dataset.
        missing: Keys of the cells that are not done.
    """
    folder = grid.out / "tables"
    files: dict[Path, str] = {}
    sections = []
    for dataset, comparison in comparisons.items():
        pictures = save_plots(comparison, folder / dataset)
        sections.append(Section(dataset, comparison, pictures, costs=False))
        title = f"{grid.title}: {dataset}"
        files[folder / f"{dataset}.md"] = markdown_text(comparison, title, costs=False)
        files[folder / f"{dataset}.csv"] = csv_text(comparison, costs=False)
        files[folder / f"{dataset}.tex"] = latex_text(comparison, costs=False)
        head, *lines = csv_text(comparison).splitlines(keepends=True)
        files[folder / f"costs-{dataset}.csv"] = "".join([head, *(line for line in lines if line.startswith(","))])
    published = [] if grid.published is None else read_published(grid.published, comparisons)
    files[folder / "index.html"] = page(grid.title, sections, _notes(grid, missing), published)
    for path, text in files.items():
        with replacing(path) as temporary:
            temporary.write_text(text)
    return list(files)


def _notes(grid: Grid, missing: Sequence[str]) -> list[str]:
    counts = [
        _count(len(grid.methods), "method"),
        _count(len(grid.datasets), "dataset"),
        _count(len(grid.seeds), "seed"),
    ]
    notes = [f"{', '.join(counts)} ({', '.join(map(str, grid.seeds))})."]
    if missing:
        notes.append(f"Not done, and not in the tables: {', '.join(missing)}.")
    return notes


def _count(number: int, name: str) -> str:
    return f"{number} {name}{'s' * (number != 1)}"
