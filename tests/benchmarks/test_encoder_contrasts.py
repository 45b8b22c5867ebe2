"""The encoder's contrasts are paired by question, over the seeds that both rows have."""

from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from scipy.stats import norm, sem

from bayeslora.results.prediction_file import PredictionFile, write_predictions
from tests.helpers.equal_rows import answers


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    import encoder_contrasts

    return encoder_contrasts


def test_a_contrast_is_that_of_its_questions(script: ModuleType, tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    label = torch.randint(4, (60,), generator=generator)
    clear = 3.0 * torch.nn.functional.one_hot(label, 4)
    nll = {}
    for row, scale, seeds in (("laplace", 1.0, (0, 1, 2)), ("temperature", 0.2, (0, 1)), ("blob", 1.0, (0,))):
        for seed in seeds:
            logits = scale * clear + torch.randn(60, 4, generator=generator)
            folder = tmp_path / row / f"seed-{seed}"
            own = replace(answers(logits, label), example_id=[f"q{i}" for i in range(60)])
            made = dict.fromkeys(script.DATASETS, own)
            write_predictions(PredictionFile(made, row, seed), folder / "test" / "predictions.parquet")
            (folder / "done.json").touch()
            nll[row, seed] = torch.nn.functional.cross_entropy(logits, label, reduction="none").double().numpy()
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in script.table(tmp_path).splitlines()]
    assert [line[:4] for line in lines[2:]] == [
        ["laplace less temperature", place, "2", "60"] for place in ("in distribution", "out of it")
    ]
    values = np.mean([nll["laplace", seed] - nll["temperature", seed] for seed in (0, 1)], axis=0)
    mean, half = (float(part) for part in lines[2][4].split(" ± "))
    assert mean == pytest.approx(values.mean(), abs=6e-4)
    assert half == pytest.approx(1.96 * sem(values), abs=6e-4)
    assert float(lines[2][5]) == pytest.approx(2 * norm.sf(abs(values.mean()) / sem(values)), abs=6e-5)
    assert lines[2][6] == "differs"
