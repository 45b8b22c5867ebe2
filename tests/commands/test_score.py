"""Answers with labels are scored as a test scores its predictions."""

import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console

from bayeslora.cli import main
from bayeslora.commands.score import score
from bayeslora.decisions.rule import fit_rule
from bayeslora.errors import UsageError
from bayeslora.metrics import UNKNOWN, Answers, evaluate
from bayeslora.results.answer_file import answer_rows
from bayeslora.results.answer_writer import AnswerWriter
from bayeslora.types import Predictive


def answers(n: int, seed: int) -> Answers:
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(3, n, 4, generator=generator)
    predictive = Predictive.from_logits(logits)
    label = torch.multinomial(predictive.probs, 1, generator=generator).squeeze(1)
    return replace(Answers.from_predictive(predictive, label), example_id=[f"q{i}" for i in range(n)])


def write(path: Path, made: Answers) -> Path:
    decided = fit_rule(answers(300, 8), answers(300, 9), "mle", risk=0.6)(made)
    inputs = [{"question": "?"}] * len(made)
    with AnswerWriter(path) as writer:
        writer.write(answer_rows(made, [["a", "b", "c", "d"]] * len(made), inputs, decided))
    return path


def test_the_numbers_are_those_of_a_test(tmp_path: Path) -> None:
    familiar, strange = answers(200, 0), answers(100, 1)
    strange.label[:30] = UNKNOWN
    files = [write(tmp_path / "intents.jsonl", familiar), write(tmp_path / "strange.parquet", strange)]
    console = Console(file=io.StringIO(), width=120)
    found = score(files, tmp_path / "metrics.json", console)
    labelled = strange[strange.label != UNKNOWN]
    assert {key: found[key] for key in ("datasets", "ood")} == {
        key: value
        for key, value in evaluate({"intents": familiar, "strange": labelled}, "mle", 0).items()
        if key in ("datasets", "ood")
    }
    assert json.loads((tmp_path / "metrics.json").read_text()) == found
    text = console.file.getvalue()
    given = found["answered"]["intents"]
    assert f"intents: {given['total']} of 200 answered, " in text
    assert "strange: 30 answers without a label were left out" in text
    assert f"intents: {found['sets']['intents']['size']:.2f} options in a set" in text
    low, high = given["interval_95"]
    assert low <= given["count"] / given["total"] <= high


def test_it_is_a_command_and_refuses_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write(tmp_path / "a.jsonl", answers(40, 0))
    assert main(["score", str(file)]) == 0
    assert "accuracy ↑" in capsys.readouterr().out
    (tmp_path / "other").mkdir()
    twin = write(tmp_path / "other" / "a.parquet", answers(40, 0))
    assert main(["score", str(file), str(twin)]) == 2
    assert (
        capsys.readouterr().err
        == "bayeslora: error: files are called a, a; their names, without endings, must differ\n"
    )
    with pytest.raises(UsageError, match="exists; give another --out"):
        score([file], file)
