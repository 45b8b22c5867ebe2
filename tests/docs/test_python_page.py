"""The page about Python is true: its code runs as it is printed, with smaller numbers and a hub of this machine."""

import re
import shutil
from pathlib import Path
from typing import Any

import pytest

PAGE = (Path(__file__).parents[2] / "docs" / "python.md").read_text()
SMALLER = {
    "max_epochs=3": "max_steps=3, limit_val_batches=1",
    "SWAG(start=1)": "SWAG(start=0, unit='step')",
    "labels=400, calibration=200": "labels=60, calibration=40, max_test=8",
}


@pytest.mark.slow
def test_its_code_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def upload_folder(self: Any, *, repo_id: str, folder_path: str, **options: Any) -> str:
        place = tmp_path / "cache" / f"models--{repo_id.replace('/', '--')}"
        (place / "refs").mkdir(parents=True)
        (place / "refs" / "COMMIT").write_text("e" * 40)
        shutil.copytree(folder_path, place / "snapshots" / ("e" * 40))
        return "done"

    monkeypatch.setattr("huggingface_hub.HfApi.create_repo", lambda self, repo_id, **options: None)
    monkeypatch.setattr("huggingface_hub.HfApi.upload_folder", upload_folder)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert len(blocks) == 4
    names: dict[str, Any] = {}
    for block in blocks:
        for given, smaller in SMALLER.items():
            block = block.replace(given, smaller)
        exec(block, names)
    assert (tmp_path / "runs" / "mine" / "serving" / "serving.json").is_file()
    assert len(names["predictor"]("Is a mouse larger than a house?").probs) == 2


def test_a_run_takes_fifteen_lines() -> None:
    first = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)[0]
    assert len([line for line in first.splitlines() if line]) <= 15
