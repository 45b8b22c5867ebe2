"""The benchmarks of Laplace posteriors run in small, and both sides predict alike where they compute the same."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
SMALL = ["--small", "--rounds", "1", "--questions", "8", "--tokens", "6"]
RATIO = r": ([\d.]+)x"


@pytest.fixture(autouse=True)
def path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))


def ratios_in(text: str) -> dict[str, float]:
    return {line.split(": ")[0]: float(found[1]) for line in text.splitlines() if (found := re.search(RATIO, line))}


def test_prediction_over_a_forward_pass(capsys: pytest.CaptureFixture[str]) -> None:
    import laplace_lora

    laplace_lora.main(["predict", *SMALL])
    found = ratios_in(capsys.readouterr().out)
    whole = ["kfac", "ekfac", "full", "diag", "full, a quarter of its directions"]
    names = ["Jacobian without the product", *(f"prediction, {name}" for name in whole)]
    assert list(found) == [f"C = {count}, {name} / forward" for count in (4, 2) for name in names]
    assert all(value > 0 for value in found.values())


@pytest.mark.slow
@pytest.mark.parametrize(
    "part, measures", [("peers", ["fit", "prediction of 8 questions"]), ("memory", ["peak memory above the model"])]
)
def test_against_laplace_torch(part: str, measures: list[str]) -> None:
    pytest.importorskip("laplace")
    script = [sys.executable, str(BENCHMARKS / "laplace_lora.py"), part, *SMALL]
    output = subprocess.run(script, check=True, capture_output=True, text=True).stdout
    pairs = ["kfac / theirs kron", "ekfac / theirs kron", "full / theirs kron", "diag / theirs diag"]
    assert list(ratios_in(output)) == [f"{measure}, ours {pair}" for measure in measures for pair in pairs]


def test_the_opponent_has_the_same_diagonal(tmp_path: Path) -> None:
    """On one token a question, their diagonal is ours, so that what is timed is the same work."""
    pytest.importorskip("laplace")
    import laplace_lora
    import laplace_peer

    laplace_lora.save_llama(str(tmp_path), laplace_lora.SMALL)
    model = laplace_lora.with_lora(str(tmp_path), laplace_lora.PREDICTION)
    batches = laplace_lora.batches_of(8, 1, 4)
    theirs = laplace_peer.variance(
        laplace_peer.fit("diag", model, batches, laplace_lora.PRECISION), batches[0]
    ).detach()
    _, jacobian = laplace_lora.contrast_jacobian(model, batches[0])
    ours = laplace_lora.fit("diag", model, batches).logit_covariance(jacobian)
    differences = torch.cat([-torch.ones(3, 1), torch.eye(3)], 1)
    torch.testing.assert_close(ours.float(), differences @ theirs @ differences.mT, rtol=1e-3, atol=1e-6)


def test_the_7b_script_runs_tiny(capsys: pytest.CaptureFixture[str]) -> None:
    import laplace_7b

    laplace_7b.main(["--tiny", "--questions", "16", "--structures", "full", "diag"])
    output = capsys.readouterr().out
    assert output.count("above the model") == output.count("prediction of 8 questions, ms") == 2


def test_the_table_has_the_six_tasks(capsys: pytest.CaptureFixture[str]) -> None:
    import laplace_memory

    laplace_memory.main()
    lines = [line.split(" | ") for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    assert [line[0].removeprefix("| ") for line in lines[1:]] == list(laplace_memory.TASKS)
    assert {line[0]: line[1] for line in lines}["| OBQA"] == str(4957 * 3)
    assert laplace_memory.P == 64 * 65536 + 8 * (4096 + 32000)
