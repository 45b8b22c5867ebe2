"""The file ``decision.json``: the decision rule of a run, beside its posterior."""

from __future__ import annotations

import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bayeslora.decisions.prediction_sets import SetRule
from bayeslora.decisions.rule import DecisionRule
from bayeslora.decisions.selective_risk import Promise, Threshold
from bayeslora.errors import UsageError
from bayeslora.files import read_record, write_record

SCHEMA = 1
FILE = "decision.json"


def save_rule(rule: DecisionRule, path: Path | str, **notes: Any) -> None:
    """Write a rule as JSON, whole or not at all; an infinite limit is written as null.

    Args:
        rule: The rule.
        path: The file, usually ``posterior/decision.json`` of a run.
        notes: Further entries, which :func:`load_rule` does not look at.
    """
    write_record(path, {"schema": SCHEMA, **_finite(asdict(rule)), **notes})


def load_rule(path: Path | str) -> DecisionRule:
    """Read a rule back, bit for bit.

    Raises:
        UsageError: If there is no such file, it is damaged, or of another schema.
    """
    path = Path(path)
    try:
        record = read_record(path, "test the run again")
        if record["schema"] != SCHEMA:
            raise UsageError(f"{path} has schema {record['schema']}; this version reads schema {SCHEMA}")
        return _rule(record)
    except FileNotFoundError:
        raise UsageError(f"no decision rule at {path}; test the run with -c method/decision") from None
    except UsageError:
        raise
    except (KeyError, TypeError, ValueError) as error:
        raise UsageError(f"{path} is damaged: {type(error).__name__} {error}; test the run again") from error


def _rule(record: dict[str, Any]) -> DecisionRule:
    promises = tuple(
        Promise(**{**promise, "thresholds": tuple(Threshold(**_infinite(t, "limit")) for t in promise["thresholds"])})
        for promise in record["promises"]
    )
    sets = tuple(SetRule(**_infinite(rule, "threshold")) for rule in record["sets"])
    names = ("risk", "set_method", "exact", "method", "selection", "calibration")
    return DecisionRule(promises, sets, **{name: record[name] for name in names})


def _finite(value: Any) -> Any:
    """The same with null for infinity, which is no JSON."""
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and math.isinf(value) else value


def _infinite(values: dict[str, Any], name: str) -> dict[str, Any]:
    return {**values, name: math.inf if values[name] is None else values[name]}
