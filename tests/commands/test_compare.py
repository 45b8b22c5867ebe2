"""Comparisons: means, intervals and pairs as scipy has them, and one line for runs that cannot be compared."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console
from scipy.stats import t, ttest_rel

from bayeslora.commands.compare import compare, main
from bayeslora.decisions.rule import fit_rule
from bayeslora.decisions.rule_file import save_rule
from bayeslora.errors import UsageError
from bayeslora.metrics import Answers
from bayeslora.results.comparison.comparison import Comparison
from bayeslora.results.prediction_file import PredictionFile, read_predictions, write_predictions
from bayeslora.types import Predictive

SETS = {"test": 150, "ood:far": 60}


def answers(n: int, noise: float, seed: int, members: int = 2) -> Answers:
    """The same questions for every seed, and answers that are the noisier the worse the method."""
    fixed, own = torch.Generator().manual_seed(n), torch.Generator().manual_seed(seed)
    truth = 2 * torch.randn(n, 4, generator=fixed, dtype=torch.float64)
    label = torch.multinomial(truth.softmax(-1), 1, generator=fixed).squeeze(1)
    logits = truth + noise * torch.randn(members, n, 4, generator=own, dtype=torch.float64)
    made = Answers.from_predictive(Predictive.from_logits(logits), label)
    return replace(made, example_id=[f"q{i}" for i in range(n)])


def write_run(folder: Path, method: str, seed: int | None, noise: float, **record: object) -> Path:
    datasets = {name: answers(n, noise * (1 + 3 * (name != "test")), seed or 0) for name, n in SETS.items()}
    write_predictions(PredictionFile(datasets, method, seed), folder / "test" / "predictions.parquet")
    if record:
        (folder / "run.json").write_text(json.dumps(record))
    return folder


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    """Four seeds of a bad method, three of a good one, a single run of a third."""
    cost = {"labels": 120, "train_seconds": 10.0, "trainable_parameters": 43008, "peak_bytes": 2**30, "extra": "x"}
    bad = [write_run(tmp_path / f"mle/{seed}", "mle", seed, 3.0, **cost) for seed in range(4)]
    good = [write_run(tmp_path / f"swag/{seed}", "swag", seed, 1.0, **(cost | {"labels": 100})) for seed in range(3)]
    return [*bad, *good, write_run(tmp_path / "laplace", "laplace", 9, 1.5)]


def quiet() -> Console:
    return Console(file=io.StringIO(), width=80)


def values(comparison: Comparison, method: str, metric: str) -> list[float]:
    return [run.numbers["test", metric] for run in comparison.methods[method]]


def test_mean_interval_and_pairs(runs: list[Path]) -> None:
    comparison = compare(runs, console=quiet())
    assert comparison.reference == "mle"
    assert list(comparison.methods) == ["mle", "swag", "laplace"]
    ours, theirs = values(comparison, "swag", "nll"), values(comparison, "mle", "nll")
    found = comparison.summary("swag", "test", "nll")
    mean = sum(ours) / 3
    assert found.mean == pytest.approx(mean)
    low, high = t.interval(0.95, 2, loc=mean, scale=torch.tensor(ours, dtype=torch.float64).std().item() / 3**0.5)
    assert (found.mean - found.half, found.mean + found.half) == pytest.approx((low, high))
    paired = ttest_rel(ours, theirs[:3]).confidence_interval()
    assert found.pairs == 3
    assert found.difference - found.difference_half == pytest.approx(paired.low)
    assert found.difference + found.difference_half == pytest.approx(paired.high)
    assert found.clear == (paired.low > 0 or paired.high < 0)


def test_the_reference_and_lone_runs_have_no_pairs(runs: list[Path]) -> None:
    comparison = compare(runs, "swag", console=quiet())
    assert list(comparison.methods) == ["swag", "mle", "laplace"]
    assert comparison.summary("swag", "test", "nll").difference is None
    alone = comparison.summary("laplace", "test", "nll")
    assert (alone.half, alone.difference, alone.pairs, alone.runs) == (None, None, 0, 1)
    assert comparison.summary("laplace", "", "labels") is None


def test_csv_holds_every_number(runs: list[Path], tmp_path: Path) -> None:
    comparison = compare(runs, out=tmp_path / "out", console=quiet())
    rows = list(csv.DictReader((tmp_path / "out" / "comparison.csv").open()))
    keys = {key for run in comparison.runs for key in run.numbers}
    assert {(row["dataset"], row["metric"]) for row in rows} == keys
    assert {
        ("test", "ece_15_floor"),
        ("ood:far", "auroc_total"),
        ("ood:far", "fpr95_epistemic"),
        ("", "labels"),
    } <= keys
    row = next(r for r in rows if (r["dataset"], r["metric"], r["method"]) == ("test", "ece_15", "swag"))
    found = comparison.summary("swag", "test", "ece_15")
    assert (float(row["mean"]), float(row["difference_half_width_95"])) == (found.mean, found.difference_half)


def test_tables_show_scores_floors_and_costs(runs: list[Path], tmp_path: Path) -> None:
    console = Console(file=io.StringIO(), width=200)
    comparison = compare(runs, out=tmp_path / "out", console=console)
    nll, floor = (comparison.summary("swag", "test", metric) for metric in ("nll", "ece_15_floor"))
    score = f"{nll.mean:.3f} ±{nll.half:.3f}".replace("±0.", "±.")
    difference = f"{nll.difference:+.3f} ±{nll.difference_half:.3f}".replace("±0.", "±.")
    markdown = (tmp_path / "out" / "comparison.md").read_text()
    for text in (markdown, console.file.getvalue()):
        for part in (score, difference, f"{floor.mean:.3f}", "1.00 GiB", "43,008", "10.0 s", "same number of labels"):
            assert part in text
    assert f"{score}<br>**{difference}**" in markdown
    tables = [line for line in markdown.splitlines() if line.startswith("|")]
    assert next(line for line in tables if line.startswith("| laplace | -")) == "| laplace | - | - | - | - | - |"
    cells = {len(line.replace("\\|", "").split("|")) for line in tables[:5]}
    assert len(cells) == 1


def test_tables_fit_the_terminal(runs: list[Path]) -> None:
    console = quiet()
    compare(runs, console=console)
    lines = console.file.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    assert "…" not in console.file.getvalue()


def test_plots_are_saved(runs: list[Path], tmp_path: Path) -> None:
    compare(runs, out=tmp_path / "out", console=quiet())
    assert {path.name for path in (tmp_path / "out").glob("*.png")} == {
        "reliability.png",
        "risk_coverage.png",
        "accuracy_ece.png",
    }


def test_expectations_take_the_place_of_noisy_scores(tmp_path: Path) -> None:
    made = {"test": replace(answers(50, 1.0, 0), true_probs=answers(50, 0.0, 0).probs)}
    write_predictions(PredictionFile(made, "mle", 0), tmp_path / "run" / "test" / "predictions.parquet")
    console = quiet()
    comparison = compare([tmp_path / "run"], console=console)
    text = console.file.getvalue()
    assert "NLL*" in text
    assert f"{comparison.summary('mle', 'test', 'expected_nll').mean:.3f}" in text
    assert "Expected under the true probabilities" in text


def test_decisions_are_compared_and_counted(runs: list[Path], tmp_path: Path) -> None:
    for folder in runs[:7]:
        found = read_predictions(folder / "test" / "predictions.parquet").datasets
        rule = fit_rule(found["test"], answers(400, 1.0, 99), "any", risk=0.3, alpha=0.2)
        save_rule(rule, folder / "test" / "decision.json")
    console = Console(file=io.StringIO(), width=200)
    comparison = compare(runs, out=tmp_path / "out", console=console)
    kept = [run.numbers["test", "answered_30_kept"] for run in comparison.methods["mle"]]
    size = comparison.summary("swag", "test", "set_lac_size")
    markdown = (tmp_path / "out" / "comparison.md").read_text()
    for text in (markdown, console.file.getvalue()):
        assert "test: decisions" in text
        assert "ood:far: decisions" in text
        assert f"{sum(kept):.0f} of 4" in text
        assert f"{size.mean:.3f} ±" in text
        assert "multiplies delta by as much" in " ".join(text.split())
        assert "minus mle" in text
    assert comparison.summary("laplace", "test", "answered_30") is None


def test_the_command_finds_runs_in_a_folder_and_takes_names(runs: list[Path], tmp_path: Path) -> None:
    text = ["--out", str(tmp_path / "out"), "--reference", "plain"]
    assert main([f"plain={tmp_path / 'mle'}", str(tmp_path / "swag"), *text]) == 0
    rows = list(csv.DictReader((tmp_path / "out" / "comparison.csv").open()))
    assert {(row["method"], row["runs"], row["reference"]) for row in rows} == {
        ("plain", "4", "plain"),
        ("swag", "3", "plain"),
    }
    with pytest.raises(UsageError, match="out already holds files"):
        main([str(tmp_path / "swag"), "--out", str(tmp_path / "out")])
    assert main([str(tmp_path / "swag"), "--out", str(tmp_path / "out"), "--overwrite"]) == 0


def test_what_cannot_be_compared_is_refused_in_one_line(runs: list[Path], tmp_path: Path) -> None:
    other = tmp_path / "other"
    made = answers(SETS["test"], 1.0, 0)
    write_predictions(PredictionFile({"test": made}, "mle", 5), other / "test" / "predictions.parquet")
    renamed = {name: answers(n, 1.0, 0) for name, n in SETS.items()}
    renamed["test"] = replace(renamed["test"], example_id=[f"p{i}" for i in range(SETS["test"])])
    write_predictions(PredictionFile(renamed, "mle", 6), tmp_path / "renamed" / "predictions.parquet")
    twin = write_run(tmp_path / "twin", "mle", 0, 2.0)
    empty = tmp_path / "empty"
    empty.mkdir()
    cases = {
        "different sets (test, ood:far; test)": [runs[0], other],
        "different questions of test": [runs[0], tmp_path / "renamed"],
        "2 runs of mle have seed 0": [runs[0], twin],
        "no predictions.parquet in": [runs[0], empty],
        "there are no runs": [],
    }
    for message, folders in cases.items():
        with pytest.raises(UsageError) as refusal:
            compare(folders, out=tmp_path / "out", console=quiet())
        assert message in str(refusal.value)
        assert "\n" not in str(refusal.value)
    with pytest.raises(UsageError, match="no method 'blob' to compare with; allowed: mle"):
        compare(runs[:1], "blob", console=quiet())
    assert not (tmp_path / "out").exists()
