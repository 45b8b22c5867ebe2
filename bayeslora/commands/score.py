"""The command ``bayeslora score``: the metrics of a test, for answers to questions whose labels are known."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from bayeslora.callbacks.report import tables
from bayeslora.commands import parsers
from bayeslora.errors import UsageError
from bayeslora.files import write_json
from bayeslora.metrics import scores
from bayeslora.metrics.evaluate import evaluate
from bayeslora.metrics.intervals import clopper_pearson
from bayeslora.results.answer_file import LabelledAnswers, read_answers


def score(files: Sequence[Path | str], out: Path | None = None, console: Console | None = None) -> dict[str, Any]:
    """Print the metrics of files of answers; every file after the first is also told apart from it by its uncertainty.

    They are those of ``bayeslora test`` on the same questions, except for the mass outside the options, for which files
    of answers do not hold enough. Answers without a label are counted and left out.

    Args:
        files: Files of answers, JSON lines or parquet.
        out: A JSON file for the numbers; None writes none.
        console: Where the table goes; None for the terminal.

    Returns:
        What ``metrics.json`` of a test holds, and under "answered" and "sets" what was decided, by file.

    Raises:
        UsageError: files that cannot be read or have no label, two of the same name, or an output that is there.
    """
    names = [Path(file).stem for file in files]
    if len(set(names)) < len(names):
        raise UsageError(f"files are called {', '.join(names)}; their names, without endings, must differ")
    if out is not None and out.exists():
        raise UsageError(f"{out} exists; give another --out")
    found = {name: read_answers(file) for name, file in zip(names, files, strict=True)}
    metrics = evaluate({name: part.answers for name, part in found.items()}, "answers", None)
    metrics["answered"] = {name: _answered(part) for name, part in found.items() if part.abstain is not None}
    metrics["sets"] = {name: _sets(part) for name, part in found.items() if part.sets is not None}
    console = console or Console()
    for table in tables(metrics, console.width):
        console.print(table)
    for name, part in found.items():
        for line in _lines(name, metrics, part.unlabelled):
            console.print(line, highlight=False)
    if out is not None:
        write_json(out, metrics)
        console.print(str(out), soft_wrap=True, highlight=False)
    return metrics


def _answered(part: LabelledAnswers) -> dict[str, Any]:
    """How many questions were not left to a person, and how many of those answers are wrong."""
    assert part.abstain is not None
    wrong = ~scores.correct(part.answers.probs, part.answers.label) & ~part.abstain
    return _share(int(wrong.sum()), int((~part.abstain).sum())) | {"questions": len(part.abstain)}


def _sets(part: LabelledAnswers) -> dict[str, Any]:
    """How many options a prediction set holds, and how many sets miss the right one."""
    assert part.sets is not None
    missed = ~part.sets.gather(-1, part.answers.label[:, None])
    return _share(int(missed.sum()), len(missed)) | {"size": float(part.sets.sum(-1).double().mean())}


def _share(count: int, total: int) -> dict[str, Any]:
    return {"count": count, "total": total, "interval_95": list(clopper_pearson(count, total))}


def _lines(name: str, metrics: dict[str, Any], unlabelled: int) -> list[str]:
    lines = []
    if given := metrics["answered"].get(name):
        lines.append(f"{name}: {given['total']} of {given['questions']} answered, {_rate(given)} of these wrong")
    if sets := metrics["sets"].get(name):
        lines.append(f"{name}: {sets['size']:.2f} options in a set, {_rate(sets)} of the sets without the right one")
    if unlabelled:
        lines.append(f"{name}: {unlabelled} answers without a label were left out")
    return lines


def _rate(share: dict[str, Any]) -> str:
    if not share["total"]:
        return "none"
    low, high = (100 * end for end in share["interval_95"])
    return f"{100 * share['count'] / share['total']:.1f} % [{low:.1f}, {high:.1f}]"


def main(args: Sequence[str]) -> int:
    """The command ``bayeslora score``; returns its exit status."""
    given = parsers.score().parse_args(args)
    score(given.answers, given.out)
    return 0
