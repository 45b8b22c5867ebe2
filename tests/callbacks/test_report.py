"""The report follows from the predictions file alone, with or without a trainer."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from rich.console import Console

from bayeslora.callbacks.predictions import Predictions
from bayeslora.callbacks.report import Report, flat, report, tables
from bayeslora.errors import UsageError
from bayeslora.metrics import UNKNOWN, Answers, evaluate
from bayeslora.results.prediction_file import PredictionFile as Predicted
from bayeslora.results.prediction_file import read_predictions, write_predictions
from bayeslora.types import Predictive
from tests.helpers.answering import Data, Module, trainer


def answers(n: int, seed: int, members: int = 3) -> Answers:
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(members, n, 4, generator=generator)
    made = Answers.from_predictive(Predictive.from_logits(logits), torch.randint(4, (n,), generator=generator))
    return replace(made, example_id=[f"q{i}" for i in range(n)])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    datasets = {"arc_easy": answers(200, 0), "mmlu:law": answers(100, 1)}
    write_predictions(Predicted(datasets, "ensemble", 5), tmp_path / "predictions.parquet")
    return tmp_path


def printed(folder: Path, **kwargs: bool) -> str:
    out = io.StringIO()
    report(folder, console=Console(file=out, width=100), **kwargs)
    return out.getvalue()


def test_metrics_are_those_of_the_file(folder: Path) -> None:
    text = printed(folder)
    metrics = json.loads((folder / "metrics.json").read_text())
    found = read_predictions(folder / "predictions.parquet")
    assert metrics == evaluate(found.datasets, "ensemble", 5)
    assert (metrics["schema"], metrics["method"], metrics["seed"], metrics["n_members"]) == (1, "ensemble", 5, 3)
    assert list(metrics["datasets"]) == ["arc_easy", "mmlu:law"]
    assert list(metrics["ood"]) == ["mmlu:law"]
    for value in (metrics["datasets"]["mmlu:law"]["nll"], metrics["ood"]["mmlu:law"]["epistemic"]["auroc"]):
        assert f"{value:.3f}" in text
    assert "ensemble, 3 members, seed 5" in text


def test_plots_are_saved_and_named(folder: Path) -> None:
    text = printed(folder)
    saved = sorted(folder.glob("*.png"))
    assert len(saved) == 4
    assert all(str(path) in text and path.read_bytes().startswith(b"\x89PNG") for path in saved)


def test_plots_can_be_left_out(folder: Path) -> None:
    printed(folder, plots=False)
    assert not list(folder.glob("*.png"))


def test_missing_labels_and_files_are_refused(folder: Path) -> None:
    half = answers(4, 0)
    half.label[1] = UNKNOWN
    write_predictions(Predicted({"new": half}, "mle"), folder / "predictions.parquet")
    with pytest.raises(UsageError, match="1 of 4 questions of new have no label"):
        report(folder)
    with pytest.raises(UsageError, match="no predictions at"):
        report(folder / "nowhere")


def test_the_callback_reports_and_logs(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path, name="logs", version="test")
    callback = Report()
    trainer(tmp_path, Predictions(), callback, logger=logger).test(Module(), Data())
    metrics = json.loads((tmp_path / "test" / "metrics.json").read_text())
    assert callback.reported is not None
    assert callback.reported.metrics == metrics
    assert {path.parent for path in callback.reported.plots} == {tmp_path / "test"}
    header = (tmp_path / "logs" / "test" / "metrics.csv").read_text().splitlines()[0].split(",")
    assert set(flat(metrics)) <= set(header)
    assert {"test/test/nll", "ood/ood:far/total/auroc"} <= set(header)


def test_the_callback_needs_predictions(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="give the trainer a Predictions callback"):
        trainer(tmp_path, Report()).test(Module(), Data())


def test_tables_take_as_many_datasets_as_the_terminal_has_room_for(folder: Path) -> None:
    datasets = {"synthetic": answers(20, 0), "synthetic:shifted": answers(20, 1), "synthetic:ood": answers(20, 2)}
    metrics = evaluate(datasets, "mle", 0)
    assert [len(table.columns) - 1 for table in tables(metrics, 80)] == [3]
    assert [len(table.columns) - 1 for table in tables(metrics, 60)] == [1, 1, 1]
    for width in (60, 80):
        out = Console(file=io.StringIO(), width=width)
        for table in tables(metrics, width):
            out.print(table)
        assert "…" not in out.file.getvalue()
        assert max(map(len, out.file.getvalue().splitlines())) <= width
