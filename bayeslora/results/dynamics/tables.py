"""The course of a training as tables: lists of rows, each a dict from column to number or name."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

from bayeslora.results.dynamics import measures
from bayeslora.results.dynamics.course import VALIDATION, Course

Cell = str | int | float | None
Row = dict[str, Cell]


def quality_table(course: Course) -> list[Row]:
    """Accuracy, NLL, Brier score and ECE of the ensemble and of one member (mean, sd), set by set, epoch by epoch."""
    rows = []
    for name in course.datasets:
        for number, answers in zip(course.numbers, course.of(name), strict=True):
            row: Row = {"dataset": name, "epoch": number, "questions": len(answers)}
            for metric, found in measures.one_and_all(answers).items():
                row |= {metric if kind == "ensemble" else f"{metric}_{kind}": value for kind, value in found.items()}
            rows.append(row)
    return rows


def uncertainty_table(course: Course) -> list[Row]:
    """Total, aleatoric and epistemic uncertainty with standard errors, and the members' pairwise disagreement."""
    rows = []
    for name in course.datasets:
        for number, answers in zip(course.numbers, course.of(name), strict=True):
            row: Row = {"dataset": name, "epoch": number}
            for kind, (mean, error) in measures.uncertainty(answers).items():
                row |= {kind: mean, f"{kind}_se": error}
            apart = measures.pairs(measures.disagreement(answers))
            rows.append(row | {"disagreement": float(apart.mean()) if len(apart) else None})
    return rows


def retention_table(course: Course) -> list[Row]:
    """What training retained, forgot, acquired and never learnt, and what became of what was known at the best epoch.

    ``kept`` is the fraction of what was right at the best epoch e* that is right now, ``kept_acquired`` of that part of
    it that the base model had wrong; both for epochs after e*. ``flips`` is the fraction of questions whose answer
    turned right or wrong since the epoch before, ``churn`` the fraction whose answer changed. In each cell the
    mean total and epistemic uncertainty follow.
    """
    rows, best = [], course.best
    for name in course.datasets:
        every = course.of(name)
        base, peak = measures.right(every[0]), measures.right(best.datasets[name])
        for place, (number, answers) in enumerate(zip(course.numbers, every, strict=True)):
            now, before = measures.right(answers), every[max(0, place - 1)]
            found = measures.cells(base, now)
            row: Row = {"dataset": name, "epoch": number}
            row |= {cell: float(chosen.double().mean()) for cell, chosen in found.items()}
            after = number > best.number
            row["kept"] = measures.retained_fraction(peak, now) if after else None
            row["kept_acquired"] = measures.retained_fraction(peak & ~base, now) if after else None
            row["flips"] = measures.changed_fraction(measures.right(before), now)
            row["churn"] = measures.changed_fraction(before.probs.argmax(-1), answers.probs.argmax(-1))
            for cell, chosen in found.items():
                for kind in ("total", "epistemic"):
                    values = getattr(answers, kind)[chosen]
                    row[f"{cell}_{kind}"] = float(values.mean()) if len(values) else None
            rows.append(row)
    return rows


def detection_table(course: Course, resamples: int = measures.RESAMPLES) -> list[Row]:
    """AUROC of every other set against the first by each score, and the difference of mean mutual information.

    Args:
        course: What was recorded epoch by epoch.
        resamples: Number of bootstrap resamples for the intervals.
    """
    tests = [name for name in course.datasets if name != VALIDATION]
    rows: list[Row] = []
    for name in tests[1:]:
        for epoch in course.epochs:
            found = measures.detection(epoch.datasets[tests[0]], epoch.datasets[name], resamples)
            row: Row = {"dataset": name, "against": tests[0], "epoch": epoch.number}
            for score, ends in found.items():
                value, low, high = ends.values()
                row |= {score: value, f"{score}_low": low, f"{score}_high": high}
            rows.append(row)
    return rows


def member_table(course: Course) -> list[Row]:
    """Quality and mutual information against the number of members, at the best epoch and at the last."""
    rows: list[Row] = []
    for epoch in {e.number: e for e in (course.best, course.epochs[-1])}.values():
        for name, answers in epoch.datasets.items():
            found = measures.against_members(answers)
            rows += [{"dataset": name, "epoch": epoch.number, **row} for row in found]
    return rows


def diversity_table(course: Course) -> list[Row]:
    """Mean, smallest and largest cosine between two members' low-rank updates, epoch by epoch."""
    rows: list[Row] = []
    for epoch in course.epochs:
        if epoch.cosine is None or len(epoch.cosine) < 2 or epoch.cosine.isnan().any():
            continue
        of_pairs = measures.pairs(epoch.cosine)
        ends = {"lowest": float(of_pairs.min()), "highest": float(of_pairs.max())}
        rows.append({"epoch": epoch.number, "cosine": float(of_pairs.mean()), **ends})
    return rows


def difficulty_table(course: Course) -> list[Row]:
    r"""The sets by their entropic signature, the most difficult for this model first; no label of theirs is used.

    The rule: a set is the more difficult, the larger the part of the base model's entropy that is still there at the
    best epoch e*, :math:`\bar H_{e^*} / \bar H_0`. With it stand mean entropy and mutual information at the base, at e*
    and at the end, and the epistemic share :math:`\bar I / \bar H`. Validation decides e* and is not ranked.
    """
    moments = {"base": course.epochs[0], "best": course.best, "last": course.epochs[-1]}
    rows: list[Row] = []
    for name in course.datasets:
        if name == VALIDATION:
            continue
        entropy = {when: float(epoch.datasets[name].total.mean()) for when, epoch in moments.items()}
        mutual = {when: float(epoch.datasets[name].epistemic.mean()) for when, epoch in moments.items()}
        row: Row = {"dataset": name, "entropy_left": entropy["best"] / entropy["base"]}
        row |= {f"entropy_{when}": value for when, value in entropy.items()}
        for when in ("best", "last"):
            row |= {f"epistemic_{when}": mutual[when], f"share_{when}": mutual[when] / entropy[when]}
        rows.append(row)
    return sorted(rows, key=lambda row: -float(row["entropy_left"] or 0))


def csv_text(rows: Sequence[Row]) -> str:
    """A table as CSV; empty where a number is not defined."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def markdown_text(rows: Sequence[Row]) -> str:
    """A table in Markdown, numbers to three digits."""
    head = list(rows[0])
    lines = [
        f"| {' | '.join(head)} |",
        "|" + "|".join("---" if isinstance(rows[0][c], str) else "--:" for c in head) + "|",
    ]
    lines += [f"| {' | '.join(cell_text(row[column]) for column in head)} |" for row in rows]
    return "\n".join(lines) + "\n"


def cell_text(value: Cell) -> str:
    """A cell for reading: numbers to three digits."""
    if value is None:
        return "-"
    return f"{value:.3f}" if isinstance(value, float) else str(value)
