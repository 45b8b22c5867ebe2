"""The benchmark of joint training runs, and a pass of many members dispatches hardly more than one's."""

import re
from pathlib import Path

import pytest


def test_it_runs_tiny(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    import ensemble_fit

    options = ["--tiny", "--rounds", "1", "--tokens", "32", "--members", "2", "5"]
    monkeypatch.setattr("sys.argv", ["ensemble_fit.py", *options])
    ensemble_fit.main()
    printed = capsys.readouterr().out
    assert printed.count("speed, joint / M peft steps:") == 4
    found = re.findall(r"M = 5: \d+ \(([\d.]+)x\)", printed)
    assert len(found) == 2
    assert all(0.9 < float(ratio) <= 1.1 for ratio in found), printed
