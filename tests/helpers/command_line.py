"""Runs of the command line and what it refuses."""

import json
from pathlib import Path

import pytest

from bayeslora.cli import main

ROOT = Path(__file__).parents[2]

FAST = [
    "--trainer.accelerator=cpu",
    "--trainer.max_epochs=1",
    "--trainer.enable_progress_bar=false",
    "--trainer.enable_model_summary=false",
]


def arguments(stage: str, root: Path, data: Path, *options: str) -> list[str]:
    model = ["--model=LoRAModule", "--model.backbone.pretrained=embedded"]
    questions = ["--data=JSONLDataModule", f"--data.path={data}", "--data.labels=40"]
    return [stage, *model, *questions, f"--trainer.default_root_dir={root}", *FAST, *options]


def refused(capsys: pytest.CaptureFixture, args: list[str], *parts: str, status: int = 2) -> None:
    """The command fails with one line on the error stream that holds every part."""
    capsys.readouterr()
    assert main(args) == status
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("bayeslora: error:")]
    assert len(lines) == 1, lines
    for part in parts:
        assert part in lines[0], lines[0]


def metrics(root: Path) -> dict:
    return json.loads((root / "test" / "metrics.json").read_text())
