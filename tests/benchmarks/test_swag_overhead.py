"""The benchmark of SWAG's overhead runs, and its state is as large as it says."""

from pathlib import Path

import pytest


def test_the_state_is_two_plus_k_vectors(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    import swag_overhead

    monkeypatch.setattr("sys.argv", ["swag_overhead.py", "--small", "--rounds", "2", "--steps", "1"])
    swag_overhead.main()
    printed = capsys.readouterr().out
    assert "= 22 x 4 x trainable parameters" in printed
    assert "% of a step" in printed
