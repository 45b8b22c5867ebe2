"""Reads the predictions of a run back and says what they are worth: a file of metrics, a table, and pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
from rich.console import Console
from rich.table import Table

from bayeslora.callbacks.logged_figures import send_figures
from bayeslora.callbacks.predictions import Predictions
from bayeslora.errors import UsageError
from bayeslora.files import PREDICTION_FILE, write_json
from bayeslora.metrics.evaluate import ERRORS, FLOOR_BINS, INTERVALS, TEMPERATURE
from bayeslora.results.measured import measure, rule_beside
from bayeslora.results.terminal import column_groups

_SECTIONS = {
    "": {
        "n": "questions",
        "accuracy": "accuracy ↑",
        "mean_confidence": "mean confidence",
        "nll": "NLL ↓",
        "brier": "Brier ↓",
    },
    "calibration": {
        f"ece_{FLOOR_BINS}": f"ECE ({FLOOR_BINS} bins) ↓",
        f"ece_{FLOOR_BINS}_floor": "  its floor",
        "adaptive_ece": "adaptive ECE ↓",
        "classwise_ece": "class-wise ECE ↓",
        "mce": "MCE ↓",
    },
    "uncertainty (nats)": {
        "total": "total",
        "aleatoric": "aleatoric",
        "epistemic": "epistemic",
        "outside_mass": "mass outside options",
    },
    "selective prediction": {
        "aurc": "area under curve ↓",
        "accuracy_at_80": "accuracy at 80 % ↑",
        "wrong_auroc_one_minus_confidence": "AUROC wrong/right ↑",
        **{f"coverage_at_{100 * e:g}": f"coverage at {100 * e:g} % error ↑" for e in ERRORS},
    },
    "expected under true p": {
        "expected_accuracy": "accuracy ↑",
        "expected_nll": "NLL ↓",
        "expected_brier": "Brier ↓",
        "expected_calibration_gap": "|confidence - p| ↓",
        "kl": "KL ↓",
    },
}
_LABEL_WIDTH, _CELL_WIDTH = 28, 15  # characters, of the first column and of the others, rules included
_SCORES = {
    "one_minus_confidence": "1 - confidence",
    "total": "total",
    "aleatoric": "aleatoric",
    "epistemic": "epistemic",
}


@dataclass(frozen=True)
class Reported:
    """What a report consists of.

    Attributes:
        metrics: The content of ``metrics.json``.
        plots: The pictures saved.
    """

    metrics: dict[str, Any]
    plots: list[Path]


class Report(L.Callback):
    """After a test: ``metrics.json``, a table on the terminal, plots; metrics and plots to the trainer's loggers too.

    Everything is made from the file that :class:`Predictions` wrote, which must be among the callbacks too.

    Args:
        plots: Save the plots.

    Example:
        >>> import lightning as L
        >>> from bayeslora import Predictions, Report
        >>> trainer = L.Trainer(callbacks=[Predictions(), Report(plots=False)], logger=False, accelerator="cpu")
    """

    def __init__(self, plots: bool = True) -> None:
        self.plots = plots
        self.reported: Reported | None = None  # on rank 0, after the test

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Report on the test that has ended, on rank 0.

        Raises:
            UsageError: If nothing wrote predictions.
        """
        files = [callback.file for callback in trainer.callbacks if isinstance(callback, Predictions)]  # type: ignore[attr-defined]
        if not files or files[0] is None:
            raise UsageError("Report found no predictions to read; give the trainer a Predictions callback too")
        if not trainer.is_global_zero:
            return
        self.reported = report(files[0].parent, self.plots)
        numbers = {name: n for name, n in flat(self.reported.metrics).items() if name not in trainer.logged_metrics}
        for logger in trainer.loggers:
            logger.log_metrics(numbers, step=trainer.global_step)
            send_figures(logger, self.reported.plots, trainer.global_step)


def report(directory: Path, plots: bool = True, console: Console | None = None) -> Reported:
    """Evaluate a results folder: write ``metrics.json`` and plots beside its ``predictions.parquet``, print the table.

    Args:
        directory: A folder that holds ``predictions.parquet``.
        plots: Save the plots.
        console: Where the table goes; None for the terminal.

    Raises:
        UsageError: If there is no valid predictions file, or labels are missing.
    """
    from bayeslora.results.prediction_file import read_predictions  # pyarrow and scipy take their time to load

    found = read_predictions(directory / PREDICTION_FILE)
    metrics = measure(found.datasets, found.method, found.seed, rule_beside(directory))
    if found.temperature is not None:
        metrics["temperature"] = found.temperature
    write_json(directory / "metrics.json", metrics)
    console = console or Console()
    for table in tables(metrics, console.width):
        console.print(table)
    for line in legend(metrics):
        console.print(line, highlight=False)
    saved: list[Path] = []
    if plots:
        from bayeslora.results.plots import save_plots  # matplotlib takes its time to load

        saved = save_plots(found.datasets, directory)
    for path in (directory / PREDICTION_FILE, directory / "metrics.json", *saved):
        console.print(str(path), soft_wrap=True, highlight=False)
    return Reported(metrics, saved)


def tables(metrics: dict[str, Any], width: int) -> list[Table]:
    """The metrics of one run, a column a dataset; behind ± how far a 95 % interval over the questions reaches.

    Where the interval reaches further to one side, it is that side. Arrows say which direction is better.

    Args:
        metrics: The content of ``metrics.json``.
        width: Characters in a line; datasets that do not fit beside the others go to a further table.
    """
    groups = column_groups(
        list(metrics["datasets"]), lambda name: max(_CELL_WIDTH, len(name) + 3), width - _LABEL_WIDTH
    )
    return [_table(metrics, names) for names in groups]


def _table(metrics: dict[str, Any], names: Sequence[str]) -> Table:
    members = "" if metrics["n_members"] in (None, 1) else f", {metrics['n_members']} members"
    seed = "" if metrics["seed"] is None else f", seed {metrics['seed']}"
    temperature = f", temperature {metrics['temperature']:.3g}" if "temperature" in metrics else ""
    result = Table(title=f"{metrics['method']}{members}{temperature}{seed}", title_justify="left")
    result.add_column("", no_wrap=True)
    for name in names:
        result.add_column(name, justify="right")
    datasets = [metrics["datasets"][name] for name in names]
    for heading, rows in {**_SECTIONS, **_decision_rows(metrics)}.items():
        present = {key: label for key, label in rows.items() if any(key in values for values in datasets)}
        if heading and present:
            result.add_section()
            result.add_row(f"[italic]{heading}")
        for key, label in present.items():
            result.add_row(label, *(_cell(values.get(key), values[INTERVALS].get(key)) for values in datasets))
            if key.startswith("answered_") and key.endswith("_error"):
                risk = key.removeprefix("answered_").removesuffix("_error")
                verdicts = [metrics["decision"]["datasets"][name][risk]["verdict"] for name in names]
                result.add_row("  promise", *(verdict.removeprefix("void, ") for verdict in verdicts))
    if set(names) & set(metrics["ood"]):
        result.add_section()
        result.add_row(f"[italic]AUROC against {next(iter(metrics['datasets']))} ↑")
        for score, label in _SCORES.items():
            found = [metrics["ood"].get(name, {}).get(score, {}) for name in names]
            cells = [_cell(values.get("auroc"), values.get(INTERVALS, {}).get("auroc")) for values in found]
            result.add_row(label, *cells)
    return result


def _decision_rows(metrics: dict[str, Any]) -> dict[str, dict[str, str]]:
    """The rows of a decision rule, by heading; none where the run has no rule."""
    if "decision" not in metrics:
        return {}
    decision = metrics["decision"]
    rows: dict[str, str] = {}
    for risk in next(iter(decision["datasets"].values())):
        rows |= {f"answered_{risk}": f"answered at {risk} % risk ↑", f"answered_{risk}_error": "  its error ↓"}
    method = decision["set_method"]
    rows |= {f"set_{method}_size": f"options in a set ({method}) ↓", f"set_{method}_missed": "  sets without answer ↓"}
    return {"decisions" if decision["exact"] else "decisions (approximate)": rows}


def legend(metrics: dict[str, Any]) -> list[str]:
    """What a decision rule promises and on which datasets it was broken, a sentence a line; nothing without a rule."""
    if "decision" not in metrics:
        return []
    first, *others = metrics["datasets"]
    lines = list(metrics["decision"]["rule"])
    lines.append(
        f"These promises are about the questions answered of the population that {first} comes from, each for itself, "
        "and not about a single question. The rows 'promise' compare with them: unclear where the error is above the "
        "risk and its interval is not."
    )
    return lines + ([f"Under shift they are void: {_shifts(metrics, others)}."] if others else [])


def _shifts(metrics: dict[str, Any], names: Sequence[str]) -> str:
    """How far the promise that decides was broken on each of the other datasets."""
    risk, parts = f"{100 * metrics['decision']['risk']:g}", []
    for name in names:
        found = metrics["decision"]["datasets"][name][risk]
        if not found["total"]:
            parts.append(f"{name} has no answer")
            continue
        low, high = (100 * end for end in found["interval_95"])
        rate = 100 * found["count"] / found["total"]
        parts.append(f"{name} has {rate:.1f} % errors [{low:.1f}, {high:.1f}] where {risk} % was promised elsewhere")
    return "; ".join(parts)


def flat(metrics: dict[str, Any]) -> dict[str, float]:
    """The numbers of ``metrics.json`` under one name each: ``test/<dataset>/<metric>`` and ``ood/<dataset>/...``.

    A fitted temperature is ``test/temperature``.
    """
    groups = {f"test/{name}": values for name, values in metrics["datasets"].items()}
    for name, by_score in metrics["ood"].items():
        groups |= {f"ood/{name}/{score}": values for score, values in by_score.items()}
    fitted = {TEMPERATURE: metrics["temperature"]} if "temperature" in metrics else {}
    return fitted | {
        f"{group}/{key}": value
        for group, values in groups.items()
        for key, value in values.items()
        if isinstance(value, int | float)
    }


def _cell(value: float | int | None, interval: Sequence[float] | None) -> str:
    if value is None:
        return "-"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.3f}" + ("" if interval is None else f" ±{max(interval[1] - value, value - interval[0]):.3f}")
