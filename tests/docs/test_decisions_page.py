"""The page about decisions is true: its code runs, its table is what the tests need."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from bayeslora.decisions.selective_risk import fewest
from bayeslora.metrics import Answers
from bayeslora.results.prediction_file import PredictionFile, write_predictions
from bayeslora.types import Predictive

PAGE = (Path(__file__).parents[2] / "docs" / "decisions.md").read_text()


def answers(n: int, seed: int) -> Answers:
    generator = torch.Generator().manual_seed(seed)
    predictive = Predictive.from_logits(4 * torch.randn(2, n, 4, generator=generator))
    label = torch.multinomial(predictive.probs, 1, generator=generator).squeeze(1)
    return replace(Answers.from_predictive(predictive, label), example_id=[f"q{i}" for i in range(n)])


def test_its_code_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parts = {"validation": answers(100, 0), "calibration": answers(300, 1)}
    write_predictions(PredictionFile(parts, "mle"), tmp_path / "posterior" / "calibration.parquet")
    write_predictions(PredictionFile({"synthetic": answers(50, 2)}, "mle"), tmp_path / "test" / "predictions.parquet")
    blocks = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert blocks
    for block in blocks:
        exec(block, {"run": tmp_path})
    assert "error at most 10 % with confidence 90 %" in capsys.readouterr().out


def test_the_table_of_sample_sizes() -> None:
    rows = re.findall(r"^\| risk (\d+) % \| (.*?) \| (.*?) \| (\d+) \|$", PAGE, re.MULTILINE)
    assert len(rows) == 4
    for risk, tenth, twentieth, split in rows:
        for delta, numbers in ((0.1, tenth), (0.05, twentieth)):
            assert [fewest(int(risk) / 100, delta, wrong) for wrong in range(3)] == [
                int(n) for n in numbers.split(" / ")
            ]
        assert fewest(int(risk) / 100, 0.1 / 3) == int(split)
