"""The code on the page about Laplace runs as it stands."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from bayeslora.curvature.fit import fit_full
from tests.helpers.batches import label_token_batch
from tests.helpers.laplace_tasks import TARGETS, task
from tests.helpers.models import trained
from tests.helpers.pages import loader

PAGE = Path(__file__).parent.parent.parent / "docs" / "laplace.md"


def blocks() -> list[str]:
    """The page's Python code blocks in their order."""
    return re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)


def test_another_prior_is_chosen_without_the_model(llama: str, tmp_path: Path) -> None:
    batches = [label_token_batch([5, 9, 7], [4, 3, 5], seed) for seed in range(3)]
    fit_full(task(trained(llama, TARGETS), batches[:2], batches[2:], tmp_path, dtype=torch.float32))
    namespace: dict[str, Any] = {"fit_folder": tmp_path}
    exec(blocks()[0], namespace)
    assert namespace["report"]["precision"].keys() == {"A", "B"}


def test_the_page_runs(name: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    namespace: dict[str, Any] = {"name": name, "folder": str(tmp_path / "run")}
    for split, n in (("train", 24), ("val", 8), ("test", 16)):
        namespace[f"{split}_loader"] = loader(n)
    for block in blocks()[1:]:
        exec(block, namespace)
    metrics = json.loads((tmp_path / "run" / "test" / "metrics.json").read_text())
    assert metrics["method"] == "TextClassifier+laplace"
    assert metrics["datasets"]["test"]["n"] == 16
    report = namespace["laplace"].report
    assert report["questions"] == 24
    assert report["m"] == 48
    assert "laplace full: 24 questions" in capsys.readouterr().out
