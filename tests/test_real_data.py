"""Public benchmarks with a 4-bit base: every test question once, none of them trained on, metrics that follow."""

import json
import os
from pathlib import Path

import pytest

from bayeslora.cli import main

ROOT = Path(__file__).parent.parent
DATA = Path(os.environ.get("BAYESLORA_DATA", ROOT.parent / "shared" / "data"))
SIZES = {"arc_easy": 2376, "obqa": 500}


@pytest.mark.slow
@pytest.mark.skipif(not DATA.is_dir(), reason=f"no benchmark files in {DATA}; set BAYESLORA_DATA")
@pytest.mark.parametrize("name", SIZES)
def test_fit_then_test(name: str, tmp_path: Path) -> None:
    from bayeslora.metrics.evaluate import evaluate
    from bayeslora.results.prediction_file import read_predictions

    files = ("base/embedded.yaml", f"data/{name}.yaml", "method/temperature.yaml")
    config = [part for file in files for part in ("-c", str(ROOT / "bayeslora" / "configs" / file))]
    options = ["--model.backbone.quantization=4bit", f"--data.data_dir={DATA}", "--data.labels=100", "--data.ood=[]"]
    trainer = ["--trainer.max_epochs=1", f"--trainer.default_root_dir={tmp_path}"]
    quiet = ["--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"]
    for stage in ("fit", "test"):
        assert main([stage, *config, *options, *trainer, *quiet]) == 0
    written = json.loads((tmp_path / "test" / "metrics.json").read_text())
    found = read_predictions(tmp_path / "test" / "predictions.parquet")
    metrics = evaluate(found.datasets, found.method, found.seed) | {"temperature": found.temperature}
    assert json.loads(json.dumps(metrics)) == written
    source = {json.loads(line)["id"]: json.loads(line) for line in _test_file(name).read_text().splitlines()}
    ids = found.datasets[name].example_id
    assert len(ids) == len(set(ids)) == SIZES[name]
    assert set(ids) == set(source)
    assert not _trained_on(name, tmp_path) & {_text(row) for row in source.values()}


def _test_file(name: str) -> Path:
    return DATA / {"arc_easy": "ai2_arc/ARC-Easy/test.jsonl", "obqa": "openbookqa/main/test.jsonl"}[name]


def _text(row: dict) -> tuple[str, ...]:
    return (row.get("question") or row["question_stem"], *row["choices"]["text"])


def _trained_on(name: str, root: Path) -> set[tuple[str, ...]]:
    from bayeslora.datamodules import ARCDataModule, OpenBookQADataModule

    kind = {"arc_easy": ARCDataModule, "obqa": OpenBookQADataModule}[name]
    datamodule = kind(data_dir=str(DATA), labels=100, seed=0)
    record = json.loads((root / "run.json").read_text())
    assert record["data_fingerprint"] == datamodule.fingerprint  # the questions of this run
    return {(q.question, *q.options) for q in [*datamodule.train_questions, *datamodule.val_questions]}
