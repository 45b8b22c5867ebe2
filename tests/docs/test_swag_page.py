"""The code on the page about SWAG runs as it stands."""

import json
import re
from pathlib import Path
from typing import Any

from tests.helpers.pages import loader

PAGE = Path(__file__).parent.parent.parent / "docs" / "swag.md"


def blocks() -> list[str]:
    """The page's Python code blocks in their order."""
    return re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)


def test_the_page_runs(name: str, tmp_path: Path) -> None:
    namespace: dict[str, Any] = {"name": name, "folder": str(tmp_path / "run")}
    for split, n in (("train", 24), ("val", 8), ("test", 16)):
        namespace[f"{split}_loader"] = loader(n)
    training, swag_too, saving = blocks()
    exec(training, namespace)
    exec(swag_too, namespace)
    exec(saving, namespace)
    swag, draws = namespace["swag"], namespace["draws"]
    metrics = json.loads((tmp_path / "run" / "test" / "metrics.json").read_text())
    assert metrics["method"] == "TextClassifier+swag"
    assert metrics["n_members"] == 30
    assert metrics["datasets"]["test"]["n"] == 16
    assert swag.moments.count == 3
    assert draws.keys() == dict(namespace["module"].named_parameters()).keys()
    assert all(len(draw) == 2 for draw in draws.values())
