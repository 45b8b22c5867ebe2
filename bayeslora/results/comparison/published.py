"""Published numbers beside ours: from a file that says of each where it is from and whether somebody has checked it."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from bayeslora.errors import UsageError, require, require_choice
from bayeslora.results.comparison.comparison import Comparison, Summary

COLUMNS = ("dataset", "method", "metric", "value", "source", "status")
STATUS = ("verified", "unverified")


@dataclass(frozen=True)
class Published:
    """One published number, and ours where there is one.

    Attributes:
        dataset: The grid's dataset, and behind a ``/`` the test set, where it is another than the dataset's own.
        method: The grid's row.
        metric: Ours, such as ``accuracy`` or ``ece_15``.
        theirs_value: As published, in our unit (a fraction, nats).
        source: The paper and its table.
        status: ``verified`` against the paper, or ``unverified``.
        ours_value: Our mean over seeds; None where there is no run.
    """

    dataset: str
    method: str
    metric: str
    theirs_value: float
    source: str
    status: str
    ours_value: float | None = None

    @property
    def difference_value(self) -> float | None:
        """Ours minus theirs."""
        return None if self.ours_value is None else self.ours_value - self.theirs_value

    @property
    def ours(self) -> str:
        """Our number as it is shown."""
        return "-" if self.ours_value is None else f"{self.ours_value:.3f}"

    @property
    def theirs(self) -> str:
        """The published number as it is shown; one that nobody has checked has a mark."""
        return f"{self.theirs_value:.3f}" + ("" if self.status == "verified" else " (unverified)")

    @property
    def difference(self) -> str:
        """The difference as it is shown."""
        return "-" if self.difference_value is None else f"{self.difference_value:+.3f}"


def read_published(file: Path, comparisons: Mapping[str, Comparison]) -> list[Published]:
    """The numbers of a CSV file with the columns ``dataset, method, metric, value, source, status``, and ours.

    Args:
        file: The file.
        comparisons: Ours, by dataset.

    Raises:
        UsageError: it is not there, a column is missing, a value is no number, or a number has no source or no status.
    """
    try:
        with file.open(newline="", encoding="utf-8") as text:
            lines = list(csv.DictReader(text))
    except OSError as error:
        raise UsageError(f"{file}: {error.strerror}; give a CSV file with the columns {', '.join(COLUMNS)}") from error
    found = []
    for number, line in enumerate(lines, start=2):
        where = f"{file}, line {number}"
        for column in COLUMNS:
            require(f"{where}: {column}", line.get(column), bool(line.get(column)), "a value in every line")
        require_choice(f"{where}: status", line["status"], STATUS)
        dataset, method, metric = line["dataset"], line["method"], line["metric"]
        summary = _ours(comparisons, dataset, method, metric)
        try:
            value = float(line["value"])
        except ValueError:
            raise UsageError(f"{where}: value is {line['value']!r}; allowed: a number") from None
        mean = None if summary is None else summary.mean
        found.append(Published(dataset, method, metric, value, line["source"], line["status"], mean))
    return found


def _ours(comparisons: Mapping[str, Comparison], dataset: str, method: str, metric: str) -> Summary | None:
    trained, _, tested = dataset.partition("/")
    ours = comparisons.get(trained)
    if ours is None or method not in ours.methods or (tested and tested not in ours.datasets):
        return None
    return ours.summary(method, tested or ours.datasets[0], metric)
