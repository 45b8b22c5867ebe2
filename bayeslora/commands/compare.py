"""The command ``bayeslora compare``: many runs as tables, Markdown, CSV, LaTeX, one HTML page, and plots."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console

from bayeslora.commands import parsers
from bayeslora.errors import UsageError
from bayeslora.files import PREDICTION_FILE, replacing, run_record
from bayeslora.results.comparison.comparison import Comparison, Run
from bayeslora.results.comparison.latex import latex_text
from bayeslora.results.comparison.page import Section, page
from bayeslora.results.comparison.tables import csv_text, legend, markdown_text, rich_tables
from bayeslora.results.measured import rule_beside
from bayeslora.results.prediction_file import read_predictions


def compare(
    runs: Sequence[Path | str],
    reference: str | None = None,
    out: Path | None = None,
    overwrite: bool = False,
    console: Console | None = None,
) -> Comparison:
    """Compare runs: print tables and, with ``out``, write them as Markdown, CSV, LaTeX and one HTML page, with plots.

    Args:
        runs: Run folders, or folders of them; "NAME=FOLDER" names the row, otherwise the method does.
        reference: The method to compare with; None for that of the first run.
        out: Folder for ``comparison.md``, ``.csv``, ``.tex``, ``.html`` and the plots; None writes nothing.
        overwrite: Replace what is in ``out``.
        console: Where the tables go; None for the terminal.

    Raises:
        UsageError: If a folder holds no valid predictions, the runs answered different questions, two runs of a method
            share a seed, the reference is not among the methods, or ``out`` holds files already.
    """
    if out is not None and not overwrite and out.is_dir() and any(out.iterdir()):
        raise UsageError(f"{out} already holds files; give another --out, or --overwrite to replace them")
    loaded = [run for source in runs for run in _load(source)]
    if not loaded:
        raise UsageError("there are no runs to compare; give at least one run folder")
    _check_same_questions(loaded)
    _check_seeds(loaded)
    names = dict.fromkeys(run.method for run in loaded)
    if reference is not None and reference not in names:
        raise UsageError(f"there is no method {reference!r} to compare with; allowed: {', '.join(names)}")
    comparison = Comparison(loaded, reference or loaded[0].method)
    console = console or Console()
    _output(comparison, out, console)
    return comparison


def main(args: Sequence[str]) -> int:
    """The command ``bayeslora compare``; returns its exit status."""
    given = parsers.compare().parse_args(args)
    compare(given.runs, given.reference, given.out, given.overwrite)
    return 0


def _output(comparison: Comparison, out: Path | None, console: Console) -> None:
    for table in rich_tables(comparison, console.width):
        console.print(table)
    for line in legend(comparison):
        console.print(line, highlight=False)
    if out is None:
        return
    from bayeslora.results.comparison.plots import save_plots  # matplotlib takes its time to load

    pictures = save_plots(comparison, out)
    texts = {
        out / "comparison.md": markdown_text(comparison),
        out / "comparison.csv": csv_text(comparison),
        out / "comparison.tex": latex_text(comparison),
        out / "comparison.html": page("Comparison", [Section(comparison.datasets[0], comparison, pictures)]),
    }
    for path, text in texts.items():
        with replacing(path) as temporary:
            temporary.write_text(text)
    for path in (*texts, *pictures):
        console.print(str(path), soft_wrap=True, highlight=False)


def _load(source: Path | str) -> list[Run]:
    name, folder = None, Path(source)
    if not folder.exists() and "=" in str(source):
        name, _, rest = str(source).partition("=")
        folder = Path(rest)
    direct = [place for place in (folder, folder / "test") if (place / PREDICTION_FILE).is_file()]
    places = direct or sorted(file.parent for file in folder.rglob(f"test/{PREDICTION_FILE}"))
    if not places:
        raise UsageError(f"no {PREDICTION_FILE} in {folder}; give run folders that `bayeslora test` has written to")
    return [_load_one(place, name) for place in places]


def _load_one(place: Path, name: str | None) -> Run:
    found = read_predictions(place / PREDICTION_FILE)
    record = run_record(place.parent)
    return Run(place, name or found.method, found.seed, dict(found.datasets), record, rule=rule_beside(place))


def _check_same_questions(runs: Sequence[Run]) -> None:
    first = runs[0]
    for run in runs[1:]:
        pair = f"{first.folder} and {run.folder}"
        if list(run.datasets) != list(first.datasets):
            raise UsageError(
                f"{pair} were tested on different sets ({', '.join(first.datasets)}; {', '.join(run.datasets)}); "
                "compare runs of the same test"
            )
        for name, answers in run.datasets.items():
            other = first.datasets[name]
            if list(answers.example_id) != list(other.example_id) or not torch.equal(answers.label, other.label):
                raise UsageError(f"{pair} were tested on different questions of {name}; compare runs of the same test")


def _check_seeds(runs: Sequence[Run]) -> None:
    (method, seed), times = Counter((run.method, run.seed) for run in runs).most_common(1)[0]
    if times > 1:
        folders = ", ".join(str(run.folder) for run in runs if (run.method, run.seed) == (method, seed))
        raise UsageError(f"{times} runs of {method} have seed {seed} ({folders}); tell them apart with NAME=FOLDER")
