"""Configurations of the papers run from end to end, OOD sets included, on real questions and the tiny base."""

import json
import os
from pathlib import Path

import pytest

from bayeslora.cli import main

ROOT = Path(__file__).parent.parent
DATA = Path(os.environ.get("BAYESLORA_DATA", ROOT.parent / "shared" / "data"))
MMLU = ["mmlu:cs", "mmlu:eng", "mmlu:law", "mmlu:health"]
SCIENCE = ["arc_challenge", "arc_easy", "mmlu:college_chemistry", "mmlu:college_physics"]
SHORT = ["--trainer.max_steps=12", "--data.labels=40"]


@pytest.mark.slow
@pytest.mark.skipif(not DATA.is_dir(), reason=f"no benchmark files in {DATA}; set BAYESLORA_DATA")
@pytest.mark.parametrize(
    ("config", "options", "expected"),
    [
        ("swag_lora/obqa", ["--data.labels=20", "--data.batch_size=8"], ["obqa", "csqa", *MMLU]),
        ("blob/obqa", SHORT, ["obqa", *SCIENCE]),
        ("c_lora/obqa", SHORT, ["obqa", *SCIENCE]),
    ],
)
def test_fit_then_test(config: str, options: list[str], expected: list[str], tmp_path: Path) -> None:
    paper = f"--config={ROOT / 'bayeslora/configs/papers' / config}.yaml"
    tiny = ["--model.backbone.pretrained=embedded", "--trainer.accelerator=cpu", "--trainer.devices=1"]
    here = [f"--data.data_dir={DATA}", "--data.max_test=24", f"--trainer.default_root_dir={tmp_path}"]
    small = ["--model.backbone.dtype=float32", "--trainer.precision=32-true", "--data.eval_batch_size=8"]
    quiet = ["--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false", "--trainer.logger=false"]
    for stage in ("fit", "test"):
        assert main([stage, paper, *tiny, *here, *small, *quiet, *options]) == 0
    metrics = json.loads((tmp_path / "test" / "metrics.json").read_text())
    assert list(metrics["datasets"]) == expected
    for numbers in metrics["datasets"].values():
        assert numbers["n"] == 24
        assert numbers["epistemic"] > 0
    for scores in metrics["ood"].values():
        assert {"auroc", "aupr_in", "aupr_out"} <= scores["total"].keys() & scores["epistemic"].keys()
