"""The command ``bayeslora dynamics``: what the members of a training knew, doubted and forgot, epoch by epoch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from bayeslora.commands import parsers
from bayeslora.errors import UsageError
from bayeslora.files import replacing, write_json
from bayeslora.results.dynamics import tables
from bayeslora.results.dynamics.course import Course, epochs_folder, join_courses, read_course
from bayeslora.results.dynamics.measures import RESAMPLES
from bayeslora.types import CONTRACT_VERSION

NAME = "dynamics"


def analyse(course: Course, resamples: int = RESAMPLES) -> dict[str, Any]:
    """Everything that ``dynamics.json`` says about a training.

    Args:
        course: The training.
        resamples: Of the bootstrap intervals.

    Returns:
        ``{"schema", "method", "seed", "members", "best_epoch", "chosen_by", "tables": {name: rows}}``. The best epoch
        e* has the lowest negative log-likelihood of the ensemble on the set ``chosen_by``.
    """
    made = {
        "quality": tables.quality_table(course),
        "uncertainty": tables.uncertainty_table(course),
        "retention": tables.retention_table(course),
        "detection": tables.detection_table(course, resamples),
        "members": tables.member_table(course),
        "diversity": tables.diversity_table(course),
        "difficulty": tables.difficulty_table(course),
    }
    return {
        "schema": CONTRACT_VERSION,
        "method": course.method,
        "seed": course.seed,
        "members": course.epochs[-1].datasets[course.datasets[0]].n_members,
        "best_epoch": course.best.number,
        "chosen_by": course.chosen_by,
        "tables": made,
    }


def dynamics(
    runs: Sequence[Path],
    out: Path | None = None,
    overwrite: bool = False,
    plots: bool = True,
    resamples: int = RESAMPLES,
    console: Console | None = None,
) -> dict[str, Any]:
    """Analyse a training: print a summary; write JSON, Markdown, a CSV file a table, and plots.

    Args:
        runs: Run folders with the files of the ``Dynamics`` callback; several are the members of one ensemble.
        out: Folder to write to; None for ``<run>/dynamics/analysis``.
        overwrite: Replace what is in ``out``.
        plots: Save the plots.
        resamples: Of the bootstrap intervals.
        console: Where the summary goes; None for the terminal.

    Returns:
        The content of ``dynamics.json``, see :func:`analyse`.

    Raises:
        UsageError: no or damaged files, runs that do not belong together, or ``out`` holds files already.
    """
    if out is None:
        out = epochs_folder(runs[0]) / "analysis"
    if not overwrite and out.is_dir() and any(out.iterdir()):
        raise UsageError(f"{out} already holds files; give another --out, or --overwrite to replace them")
    course = join_courses([read_course(run) for run in runs])
    found = analyse(course, resamples)
    write_json(out / f"{NAME}.json", found)
    texts = {out / f"{name}.csv": tables.csv_text(rows) for name, rows in found["tables"].items() if rows}
    texts[out / f"{NAME}.md"] = markdown(found)
    for path, text in texts.items():
        with replacing(path) as temporary:
            temporary.write_text(text)
    if plots:
        from bayeslora.results.dynamics.plots import save_plots  # matplotlib takes its time to load

        save_plots(course, found, out)
    console = console or Console()
    if found["tables"]["difficulty"]:
        console.print(summary(found))
    console.print(str(out), soft_wrap=True, highlight=False)
    return found


def main(args: Sequence[str]) -> int:
    """The command ``bayeslora dynamics``; returns its exit status."""
    given = parsers.dynamics().parse_args(args)
    dynamics(given.runs, given.out, given.overwrite)
    return 0


def markdown(found: dict[str, Any]) -> str:
    """The tables in Markdown, with what was measured."""
    head = f"{found['method']}, {found['members']} members; best epoch {found['best_epoch']} by {found['chosen_by']}"
    parts = ["# Dynamics\n", f"{head}. Entropies are in nats.\n"]
    for name, rows in found["tables"].items():
        if rows:
            parts += [f"## {name}\n", tables.markdown_text(rows)]
    return "\n".join(parts)


def summary(found: dict[str, Any]) -> Table:
    """The sets in the order of their difficulty, at least one, as a table for the terminal."""
    title = f"{found['method']}, {found['members']} members, best epoch {found['best_epoch']}: hardest first"
    table = Table(title=title, title_justify="left")
    rows = found["tables"]["difficulty"]
    for column in rows[0]:
        table.add_column(column, justify="left" if isinstance(rows[0][column], str) else "right")
    for row in rows:
        table.add_row(*(tables.cell_text(value) for value in row.values()))
    return table
