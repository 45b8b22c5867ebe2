"""From the overlay to the tables, and a folder that is not written over."""

import json
from pathlib import Path

import pytest

from bayeslora.cli import main
from tests.helpers.runs import questions
from tests.helpers.swag_runs import arguments

OVERLAY = Path(__file__).parent.parent.parent / "bayeslora" / "configs" / "method" / "dynamics.yaml"


def test_fit_follows_and_dynamics_reports(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, root = questions(tmp_path / "data"), tmp_path / "run"
    fit = arguments("fit", root, data, f"-c={OVERLAY}", "--trainer.callbacks.every=2")
    assert main(fit) == 0
    assert main(["dynamics", str(root), "--out", str(tmp_path / "out")]) == 0
    found = json.loads((tmp_path / "out" / "dynamics.json").read_text())
    assert (found["method"], found["seed"], found["members"]) == ("mle", 0, 1)
    assert [row["epoch"] for row in found["tables"]["quality"] if row["dataset"] == "validation"] == [0, 2, 4, 6]
    for left in ("checkpoints", "posterior"):
        for file in sorted((root / left).rglob("*"), reverse=True):
            file.unlink() if file.is_file() else file.rmdir()
        (root / left).rmdir()
    assert main(fit) == 2  # what was followed counts as a run
    assert "already holds a run" in capsys.readouterr().err
    assert main([*fit, "--overwrite", "--trainer.max_epochs=2"]) == 0
    assert [file.name for file in sorted((root / "dynamics").glob("*.json"))] == ["epoch-000.json", "epoch-002.json"]
