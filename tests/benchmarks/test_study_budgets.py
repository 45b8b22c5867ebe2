"""The study's tables over budgets say what the predictions say: means, paired differences, and what context adds."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import torch
from scipy.stats import spearmanr

from bayeslora.metrics import Answers
from bayeslora.results.prediction_file import PredictionFile, write_predictions
from bayeslora.types import Predictive

SETS = ("synthetic", "synthetic:shifted", "synthetic:ood")
NOISE = {"mle": 2.0, "mle+temperature": 1.5, "c_lora": 0.3, "c_lora_fe": 0.6}


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    import study_budgets

    return study_budgets


def answers(place: int, seed: int, noise: float) -> Answers:
    fixed, own = torch.Generator().manual_seed(place), torch.Generator().manual_seed(seed)
    truth = (2 * torch.randn(80, 4, generator=fixed, dtype=torch.float64)).softmax(-1)
    label = torch.multinomial(truth, 1, generator=fixed).squeeze(1)
    logits = truth.log() + noise * torch.randn(2, 80, 4, generator=own, dtype=torch.float64)
    made = Answers.from_predictive(Predictive.from_logits(logits), label)
    return replace(made, true_probs=truth, example_id=[f"q{i}" for i in range(80)])


@pytest.fixture
def studies(tmp_path: Path) -> list[Path]:
    """Three seeds of four rows at two budgets; the larger one has no row without context."""
    for labels in (50, 500):
        for row, noise in NOISE.items():
            if (labels, row) == (500, "c_lora_fe"):
                continue
            for seed in range(3):
                folder = tmp_path / str(labels) / row / f"seed-{seed}"
                datasets = {name: answers(place, labels + seed, noise) for place, name in enumerate(SETS)}
                write_predictions(PredictionFile(datasets, row, seed), folder / "test" / "predictions.parquet")
                cost = {"labels": labels, "train_seconds": 10.0 + seed, "predict_seconds": 2.0}
                (folder / "run.json").write_text(json.dumps(cost))
    return [tmp_path / "50", tmp_path / "500"]


def cells(text: str, row: str) -> list[str]:
    (line,) = [line for line in text.splitlines() if line.startswith(f"| {row} |")]
    return [part.strip() for part in line.strip("|").split("|")]


def test_tables_and_picture(
    script: ModuleType, studies: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = tmp_path / "picture.png"
    script.main([*map(str, studies), "--rows", *NOISE, "--drawn", "mle", "c_lora_fe", "--picture", str(picture)])
    small, large = capsys.readouterr().out.split("## 500 labels")
    titles = ["", *script.COLUMNS, *script.COSTS]
    for row in NOISE:
        assert len(cells(small, row)) == len(titles)
    assert cells(small, "mle")[titles.index("training, s")] == "11.0"
    assert "(**-" in cells(small, "c_lora")[titles.index("NLL*")]
    assert "(" not in cells(small, "c_lora")[titles.index("KL")]
    assert "c_lora_fe" not in large.split("## What context adds")[0]
    assert picture.stat().st_size > 10_000


def test_what_context_adds_is_a_difference_of_rank_correlations(script: ModuleType, studies: list[Path]) -> None:
    lines = script.context_table({50: studies[0]})
    differences = []
    for seed in range(3):
        found = {}
        for row in ("c_lora", "c_lora_fe"):
            made = answers(0, 50 + seed, NOISE[row])
            assert made.true_probs is not None
            entropy = torch.special.entr(made.true_probs).sum(-1)
            found[row] = spearmanr(made.total, entropy).statistic
        differences.append(found["c_lora"] - found["c_lora_fe"])
    assert f"{sum(differences) / 3:+.3f} ±" in cells(lines, "50")[1]


def test_a_row_that_a_budget_lacks_is_left_open(script: ModuleType, studies: list[Path]) -> None:
    row = cells(script.context_table({500: studies[1]}), "500")
    assert [cell == "-" for cell in row[1:]] == [True, False, False, True, False, False]
