"""A protocol of one's own on the command line: a run keeps it by content, and answers with it when the file is gone."""

import json
from pathlib import Path

import pytest
import yaml

from bayeslora import Predictor
from bayeslora.cli import main
from bayeslora.results.prediction_file import read_predictions

PROTOCOL = 'name: mine\ntemplate: "{question}\\n{options}\\nAnswer:"\noption: "{label}) {option}"\nwords: [A, B]\n'
FAST = [
    "--model.backbone.pretrained=embedded",
    "--trainer.accelerator=cpu",
    "--trainer.max_steps=2",
    "--trainer.enable_progress_bar=false",
    "--trainer.enable_model_summary=false",
]


@pytest.fixture(scope="module")
def questions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("own")
    rows = [{"question": f"Is {i} even?", "options": ["yes", "no"], "label": i % 2} for i in range(30)]
    (folder / "numbers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / "numbers.jsonl"


def test_a_run_outlives_the_file(tmp_path: Path, questions: Path) -> None:
    file, root = tmp_path / "mine.yaml", tmp_path / "run"
    file.write_text(PROTOCOL)
    data = ["--data=JSONLDataModule", f"--data.path={questions}"]
    fit = ["fit", "--model=LoRAModule", *data, f"--data.protocol={file}", *FAST, f"--trainer.default_root_dir={root}"]
    assert main(fit) == 0
    saved = yaml.safe_load((root / "fit-config.yaml").read_text())["data"]["init_args"]["protocol"]
    assert saved["words"] == ["A", "B"]
    file.unlink()
    assert main(["test", "-c", str(root / "fit-config.yaml")]) == 0
    tested = read_predictions(root / "test" / "predictions.parquet").datasets["jsonl:numbers"]
    rows = [json.loads(line) for line in questions.read_text().splitlines()]
    predictor = Predictor.from_run(root, device="cpu")
    assert predictor.kept.prompting.protocol == saved
    asked = {f"numbers/{i}": row for i, row in enumerate(rows)}
    for place, name in enumerate(tested.example_id):
        answer = predictor(asked[name])
        assert answer.probs == pytest.approx(tested.probs[place].tolist(), abs=1e-6)


def test_a_file_that_is_not_there(tmp_path: Path, questions: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = ["--data=JSONLDataModule", f"--data.path={questions}", "--data.protocol=missing.yaml"]
    assert main(["fit", "--model=LoRAModule", *data, *FAST, f"--trainer.default_root_dir={tmp_path}"]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("bayeslora: error:")]
    assert "protocol missing.yaml cannot be read" in line


def test_a_resumed_run_keeps_its_prompt(tmp_path: Path, questions: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, root = tmp_path / "mine.yaml", tmp_path / "run"
    file.write_text(PROTOCOL)
    data = ["--data=JSONLDataModule", f"--data.path={questions}", f"--data.protocol={file}"]
    fit = ["fit", "--model=LoRAModule", *data, *FAST, f"--trainer.default_root_dir={root}"]
    assert main(fit) == 0
    assert main([*fit, "--ckpt_path=last", "--trainer.max_steps=3"]) == 0
    file.write_text(PROTOCOL.replace("Answer:", "So:"))
    capsys.readouterr()
    assert main([*fit, "--ckpt_path=last", "--trainer.max_steps=4"]) == 2
    assert "cannot resume: protocol is {'template'" in capsys.readouterr().err
