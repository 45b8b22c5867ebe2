"""The study around early stopping: rows share trainings, refits take what was found, and contrasts are paired."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import torch
from scipy.stats import ttest_rel

from bayeslora.datamodules.synthetic import SyntheticDataModule
from bayeslora.metrics import Answers
from bayeslora.results.prediction_file import PredictionFile, read_predictions, write_predictions
from bayeslora.types import Predictive


@pytest.fixture
def baselines(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script, whose trainings take 12 steps."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    import baselines

    monkeypatch.setattr(baselines, "STEPS", 12)
    monkeypatch.setattr(baselines, "FOLD_EPOCHS", 4)
    return baselines


def test_rows_share_a_training_and_refits_take_what_was_found(baselines: ModuleType, tmp_path: Path) -> None:
    study = baselines.Study(tmp_path, seed=3, tuned={"tfb": 0.5}, questions=12, labels=20)
    records = {name: study.row(name) for name in ("refit", "early_stopping", "tfb", "cross_fit")}
    trained = {path.parent.parent.name for path in tmp_path.glob("trainings/*/*/training.json")}
    assert trained == {"refit", "early_stopping", "cross_fit"}  # tfb is around the stopped one
    stopped = records["early_stopping"]
    assert records["refit"]["steps"] == stopped["best_step"] <= stopped["steps"]
    assert records["refit"]["temperature"] == stopped["temperature"]
    assert records["cross_fit"]["steps"] in (2, 4)  # epochs of one step, validated every second
    assert "validation_nll" not in records["refit"], "all of its labels are trained on"
    plain, tempered = (
        read_predictions(tmp_path / row / "seed-3" / "test" / "predictions.parquet")
        for row in ("refit", "refit+temperature")
    )
    assert (plain.method, tempered.method, list(plain.datasets)) == (
        "refit",
        "refit+temperature",
        ["synthetic", "synthetic:shifted", "synthetic:ood"],
    )
    wanted = plain.datasets["synthetic"].tempered(stopped["temperature"]).probs
    torch.testing.assert_close(tempered.datasets["synthetic"].probs, wanted, atol=1e-6, rtol=0)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    assert study.row("refit") == records["refit"]
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}


def test_folds_hold_every_label_once(baselines: ModuleType) -> None:
    common = {"labels": 23, "seed": 1}
    usual = SyntheticDataModule(**common)
    everything = {q.id for q in usual.train_questions + usual.val_questions}
    held = []
    for fold in range(baselines.FOLDS):
        data = baselines.Labels(fold, **common)
        validation, training = ({q.id for q in part} for part in (data.val_questions, data.train_questions))
        assert (validation | training, validation & training) == (everything, set())
        held += sorted(validation)
    assert sorted(held) == sorted(everything)
    data = baselines.Labels(None, **common)
    assert ({q.id for q in data.train_questions}, data.val_questions) == (everything, [])


def test_every_row_is_made_of_shipped_configurations(baselines: ModuleType, tmp_path: Path) -> None:
    tuned = {name: trials[-1] for name, trials in baselines.TRIALS.items()}
    study = baselines.Study(tmp_path, 0, tuned)
    for name, row in baselines.ROWS.items():
        module = study.module(baselines.TRAININGS[row.training])
        assert module.optimisation.learning_rate == (0.5 if name.startswith("ivon") else 5e-4)
        assert row.callbacks(tuned) is not None
    assert study.module(baselines.TRAININGS["map"]).prior_std == tuned["map"]
    assert study.module(baselines.TRAININGS["map_last"]).prior_std == tuned["map_last"]
    assert study.module(baselines.TRAININGS["ivon_stopped"]).ess == tuned["ivon_stopped"]
    assert study.module(baselines.TRAININGS["mc_dropout"]).lora.dropout == tuned["mc_dropout"]
    assert study.module(baselines.TRAININGS["mc_dropout"]).lora.r == 8  # the rest of the mapping stays


def test_what_is_tuned_stays_and_the_rest_is_tuned(
    baselines: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(baselines, "TRIALS", {"map_last": (0.1, 0.4), "tfb_last": (0.003, 1.5)})
    (tmp_path / "tuned.json").write_text(json.dumps({"map_last": 0.7}))
    baselines.tune(tmp_path, [100])
    tuned = json.loads((tmp_path / "tuned.json").read_text())
    assert tuned["map_last"] == 0.7
    tried = {float(line.split()[1][:-1]): float(line.split()[-1]) for line in _lines(capsys, "tfb_last ")}
    assert tried.keys() == {0.003, 1.5}
    assert tuned["tfb_last"] == min(tried, key=lambda value: tried[value])


def _lines(capsys: pytest.CaptureFixture[str], start: str) -> list[str]:
    return [line for line in capsys.readouterr().out.splitlines() if line.startswith(start)]


def test_contrasts_are_paired_by_seed(
    baselines: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import contrasts

    rows = {row for contrast in contrasts.NAMED for row in (contrast.row, contrast.other)}
    for row in rows:
        for seed in range(4):
            folder = tmp_path / row / f"seed-{seed}"
            noise = 0.1 if row == "blob" else 2.0  # the one difference that is large in every seed
            found = {
                name: _answers(place, seed, noise, row) for place, name in enumerate(("synthetic", "synthetic:shifted"))
            }
            write_predictions(PredictionFile(found, row, seed), folder / "test" / "predictions.parquet")
            (folder / "run.json").write_text(json.dumps({"labels": 120}))
    contrasts.main([str(tmp_path)])
    plain, tempered, named = (
        [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]]
        for table in capsys.readouterr().out.strip().split("\n\n")
    )
    assert [line[0] for line in plain] == ["early_stopping", "ensemble", "multiswag", "blob"]
    assert {line[0] for line in tempered} == {row for row in rows if row.endswith("+temperature")}
    told = {line[0]: line for line in named}
    assert [line[0] for line in named if line[-1] == "differs"] == ["blob less early_stopping"]
    scores = {
        row: [_nll(_answers(0, seed, noise, row)) for seed in range(4)]
        for row, noise in (("blob", 0.1), ("early_stopping", 2.0))
    }
    test = ttest_rel(scores["blob"], scores["early_stopping"])
    mean = sum(scores["blob"]) / 4 - sum(scores["early_stopping"]) / 4
    assert told["blob less early_stopping"][3].startswith(f"{mean:+.3f} ±")
    assert plain[3][2].endswith(f"(**{mean:+.3f} ±{told['blob less early_stopping'][3].split('± ')[1]}**)")
    assert told["blob less early_stopping"][4] == f"{test.pvalue:.4f}"
    contrasts.main([str(tmp_path), "--first-seed", "1"])
    later = sum(scores["blob"][1:]) / 3 - sum(scores["early_stopping"][1:]) / 3
    assert f"| blob less early_stopping | NLL*, in distribution | 3 | {later:+.3f} ±" in capsys.readouterr().out


def _answers(place: int, seed: int, noise: float, row: str) -> Answers:
    fixed, own = torch.Generator().manual_seed(place), torch.Generator().manual_seed(seed + 100 * len(row))
    truth = (2 * torch.randn(60, 4, generator=fixed, dtype=torch.float64)).softmax(-1)
    label = torch.multinomial(truth, 1, generator=fixed).squeeze(1)
    logits = truth.log() + noise * torch.randn(2, 60, 4, generator=own, dtype=torch.float64)
    made = Answers.from_predictive(Predictive.from_logits(logits), label)
    return replace(made, true_probs=truth, example_id=[f"q{i}" for i in range(60)])


def _nll(answers: Answers) -> float:
    assert answers.true_probs is not None
    return float(-(answers.true_probs * answers.probs.log()).sum(-1).mean())
