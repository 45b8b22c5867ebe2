"""All numbers of a run: the metrics of its predictions and what became of its decision rule's promises."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bayeslora.decisions.outcome import count_answered, decision_intervals, decision_numbers
from bayeslora.decisions.rule import DecisionRule, describe
from bayeslora.decisions.rule_file import FILE, load_rule
from bayeslora.metrics.answers import Answers
from bayeslora.metrics.evaluate import INTERVALS, evaluate


def measure(
    datasets: Mapping[str, Answers],
    method: str,
    seed: int | None,
    rule: DecisionRule | None = None,
    intervals: bool = True,
) -> dict[str, Any]:
    """What :func:`bayeslora.metrics.evaluate` gives, and the numbers of a decision rule among those of each dataset.

    With a rule, ``decision`` says what it promises: its lines in words, ``exact``, ``risk``, and for each dataset and
    risk how many were answered, how many wrongly, and the verdict. On datasets other than the first the promise is
    void, and the verdict says so.

    Args:
        datasets: Name to answers, the in-distribution test set first.
        method: Name of the method.
        seed: Seed of the run.
        rule: The rule that belongs to these predictions.
        intervals: Add intervals over the questions.
    """
    metrics = evaluate(datasets, method, seed, intervals)
    if rule is None:
        return metrics
    for name, answers in datasets.items():
        metrics["datasets"][name] |= decision_numbers(rule, answers)
        if intervals:
            metrics["datasets"][name][INTERVALS] |= decision_intervals(rule, answers)
    first = next(iter(datasets))
    metrics["decision"] = {
        "rule": describe(rule),
        "exact": rule.exact,
        "risk": rule.risk,
        "set_method": rule.set_method,
        "datasets": {name: _verdicts(rule, answers, name == first) for name, answers in datasets.items()},
    }
    return metrics


def _verdicts(rule: DecisionRule, answers: Answers, promised: bool) -> dict[str, Any]:
    found = {}
    for risk, outcome in count_answered(rule, answers).items():
        verdict = outcome.verdict if promised else f"void, {outcome.verdict}"
        found[f"{100 * risk:g}"] = {**asdict(outcome), "interval_95": list(outcome.interval), "verdict": verdict}
    return found


def rule_beside(directory: Path) -> DecisionRule | None:
    """The rule that a test left beside its predictions; None where it left none."""
    return load_rule(directory / FILE) if (directory / FILE).is_file() else None
