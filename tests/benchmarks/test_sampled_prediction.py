"""The benchmark of sampled prediction runs, and its contestants answer alike."""

import re
from pathlib import Path

import pytest
import torch


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    import sampled_prediction

    return sampled_prediction


def test_the_table_has_every_base_and_batch(script, capsys: pytest.CaptureFixture[str]) -> None:
    script.main(["--small", "--rounds", "1", "--tokens", "8"])
    table = capsys.readouterr().out.split("\n\n")[-1].strip().splitlines()
    assert [line.split(" | ")[:2] for line in table[2:]] == [
        [f"| {base}", str(size)] for base in ("fp32", "nf4") for size in script.BATCHES
    ]
    for line in table[2:]:
        figures = re.findall(r"([\d.]+) \[([\d.]+), ([\d.]+)\]", line)
        assert len(figures) == 5
        assert all(float(value) > 0 for value, _, _ in figures[1:])


def test_contestants_answer_alike(script) -> None:
    for _, model in script.models(torch.device("cpu"), small=True):
        before = {name: value.clone() for name, value in model.trainable().items()}
        four, two = (script.questions(3, 8, options, torch.device("cpu")) for options in (4, 2))
        answers = {name: predict().probs for name, predict in script.contestants(model, four, two).items()}
        torch.testing.assert_close(answers["fanned out"], answers["one after another"], atol=1e-6, rtol=1e-6)
        assert (answers["fanned out"] - answers[script.FORWARD]).abs().max() > 1e-5
        torch.testing.assert_close(answers["linearised, C = 4"], answers[script.FORWARD], atol=1e-2, rtol=0)
        assert all(torch.equal(value, before[name]) for name, value in model.trainable().items())
