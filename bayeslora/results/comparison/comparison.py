"""Runs on the same questions, summed up: mean and interval over seeds, paired by seed against a reference."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from bayeslora.decisions.rule import DecisionRule
from bayeslora.metrics.answers import Answers
from bayeslora.metrics.intervals import over_seeds
from bayeslora.results.comparison.ties import best_rows
from bayeslora.results.measured import measure

SHARED = "shared_train_seconds"  # of the run whose training a run uses
COSTS = (
    "labels",
    "train_seconds",
    SHARED,
    "predict_seconds",
    "peak_bytes",
    "trainable_parameters",
)  # as ``run.json`` calls them
RUN = ""  # stands for the dataset where a number belongs to the run and not to one of its datasets


@dataclass(frozen=True)
class Run:
    """One run, as its folder tells it.

    Attributes:
        folder: The folder of its predictions.
        method: Name of its row.
        seed: Its seed; None where it had none, and cannot be paired.
        datasets: What it answered, the in-distribution test set first.
        record: The content of ``run.json``.
        rule: Its decision rule, where it has one.
    """

    folder: Path
    method: str
    seed: int | None
    datasets: dict[str, Answers]
    record: dict[str, Any]
    rule: DecisionRule | None = None

    @cached_property
    def numbers(self) -> dict[tuple[str, str], float]:
        """Every number by dataset and name; AUROCs against the first dataset as ``auroc_<score>`` and the like."""
        metrics = measure(self.datasets, self.method, self.seed, self.rule, intervals=False)
        found = {(name, key): value for name, values in metrics["datasets"].items() for key, value in values.items()}
        for name, by_score in metrics["ood"].items():
            for score, values in by_score.items():
                found |= {(name, f"{key}_{score}"): value for key, value in values.items()}
        found |= {(RUN, key): self.record.get(key) for key in COSTS}
        return {key: float(value) for key, value in found.items() if value is not None}


@dataclass(frozen=True)
class Summary:
    """One number of one method over its seeds, and against the reference.

    Attributes:
        mean: Mean over seeds.
        half: Half of the 95 % t interval; None for a single seed.
        runs: Number of seeds.
        difference: Mean difference from the reference over the seeds both have; None for the reference itself.
        difference_half: Half of its 95 % t interval, paired by seed; None for less than two pairs.
        pairs: Number of pairs.
    """

    mean: float
    half: float | None
    runs: int
    difference: float | None = None
    difference_half: float | None = None
    pairs: int = 0

    @property
    def clear(self) -> bool:
        """Whether the interval of the difference leaves out zero."""
        if self.difference is None or self.difference_half is None:
            return False
        return abs(self.difference) > self.difference_half


@dataclass(frozen=True)
class Comparison:
    """Runs on the same questions.

    Attributes:
        runs: All runs.
        reference: The method that the others are compared with.
    """

    runs: Sequence[Run]
    reference: str

    @cached_property
    def methods(self) -> dict[str, list[Run]]:
        """Runs by method, those of the reference first, then the others in the order in which they came."""
        found: dict[str, list[Run]] = {self.reference: []}
        for run in self.runs:
            found.setdefault(run.method, []).append(run)
        return found

    @property
    def datasets(self) -> list[str]:
        """Names of the datasets, the in-distribution test set first."""
        return list(self.runs[0].datasets)

    def summary(self, method: str, dataset: str, metric: str) -> Summary | None:
        """One number of a method; None where no run of it has that number.

        Args:
            method: The method's name.
            dataset: The dataset's name.
            metric: The metric's name, as in ``metrics.json``.
        """
        ours, theirs = self._by_seed(method, dataset, metric), self._by_seed(self.reference, dataset, metric)
        if not ours:
            return None
        mean, half = over_seeds(list(ours.values()))
        shared = [seed for seed in ours if seed in theirs and seed is not None]
        if method == self.reference or not shared:
            return Summary(mean, half, len(ours))
        difference, difference_half = over_seeds([ours[seed] - theirs[seed] for seed in shared])
        return Summary(mean, half, len(ours), difference, difference_half, len(shared))

    def best(self, dataset: str, metric: str) -> frozenset[str]:
        """The methods that are the best in a number, or not to be told from it, see :func:`best_rows`.

        Args:
            dataset: The dataset.
            metric: The number.
        """
        if dataset == RUN:
            return frozenset()
        rows = {m: [run.datasets[dataset] for run in runs] for m, runs in self.methods.items()}
        return frozenset(best_rows(metric, rows))

    def _by_seed(self, method: str, dataset: str, metric: str) -> dict[int | None, float]:
        key = (dataset, metric)
        return {run.seed: run.numbers[key] for run in self.methods[method] if key in run.numbers}
