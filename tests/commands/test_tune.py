"""``bayeslora tune``: trials are runs that predict the validation questions, and only what is left is run."""

import json
from pathlib import Path

import pytest
import yaml

import bayeslora.commands.tune as tune
from bayeslora.cli import main
from bayeslora.grid.cells import Cell
from bayeslora.grid.schedule import End
from tests.helpers.command_line import refused

pytest.importorskip("optuna", reason="needs Optuna: pip install 'bayeslora[tune]'")
pytestmark = pytest.mark.usefixtures("environment")
RATE = "model.init_args.optimisation.learning_rate"


class Here:
    """An engine that runs cells in this process."""

    def __init__(self, command: list[str]) -> None:
        self.command, self.begun, self._ended = command, list[str](), dict[Cell, End]()

    def room(self) -> bool:
        return True

    def start(self, cell: Cell) -> None:
        self.begun.append(cell.key)
        self._ended[cell] = End(f"status {main([*self.command, cell.key])}")

    def ended(self) -> dict[Cell, End]:
        found, self._ended = self._ended, {}
        return found

    def stop(self) -> None:
        pass


@pytest.fixture
def begun(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The keys of the trials that were begun."""
    found: list[str] = []

    def engine(given: object, threads: int, command: list[str]) -> Here:
        made = Here(command)
        made.begun = found
        return made

    monkeypatch.setattr(tune, "make_engine", engine)
    return found


@pytest.fixture
def command(data: Path, tmp_path: Path) -> list[str]:
    own = {"backbone": {"pretrained": "embedded"}, "optimisation": {"learning_rate": 1e-4}}
    model = {"class_path": "LoRAModule", "init_args": own}
    questions = {"class_path": "JSONLDataModule", "init_args": {"path": str(data), "labels": 40, "batch_size": 8}}
    trainer = {"max_steps": 2, "accelerator": "cpu", "enable_model_summary": False}
    config, space = tmp_path / "config.yaml", tmp_path / "space.yaml"
    config.write_text(yaml.safe_dump({"model": model, "data": questions, "trainer": trainer}))
    space.write_text(yaml.safe_dump({"trials": 2, "batch": 2, "parameters": {RATE: {"low": 1e-4, "high": 1e9}}}))
    return ["tune", "-c", str(config), "--space", str(space), "--out", str(tmp_path / "out")]


@pytest.mark.slow
def test_trials_predict_the_validation_questions_and_a_second_call_runs_nothing(
    command: list[str], begun: list[str], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """Rates up to a thousand million: a trial whose loss is no longer finite is a failure, and the others go on."""
    assert main(command) == 0
    assert begun == ["trial/0/0", "trial/1/0"]
    trials = json.loads((tmp_path / "out" / "trials.json").read_text())["trials"]
    first = json.loads((tmp_path / "out/trial/0/seed-0/test/metrics.json").read_text())["datasets"]
    assert list(first) == ["validation"]
    assert trials[0]["parameters"] == {RATE: 1e-4}
    assert trials[0]["nll"] == first["validation"]["nll"]
    best = min((trial for trial in trials if trial["nll"] is not None), key=lambda trial: trial["nll"])
    said = capsys.readouterr().out
    assert f"best {best['nll']:.4f}" in said
    assert "train with: bayeslora fit -c" in said
    assert main(command) == 0
    assert len(begun) == 2


def test_trials_of_another_configuration_are_not_gone_on_with(
    command: list[str], begun: list[str], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert main([*command, "--cell", "trial/0/0"]) == 0
    config = tmp_path / "config.yaml"
    config.write_text(config.read_text().replace("max_steps: 2", "max_steps: 3"))
    refused(capsys, command, "holds a run of another configuration: configuration trainer.max_steps was 2 and is 3")
    assert begun == []


def test_on_slurm_a_batch_is_written_at_a_time(command: list[str], capsys: pytest.CaptureFixture) -> None:
    assert main([*command, "--engine", "slurm"]) == 0
    assert "2 runs are written; submit them with" in capsys.readouterr().out
    script = (Path(command[-1]) / "slurm" / "trainings-0.sbatch").read_text()
    assert "trial/0/0\ntrial/1/0\n" in script


@pytest.mark.parametrize(
    ("parameters", "parts"),
    [
        ({"model.init_args.rank": [4]}, ["rank"]),
        ({RATE: []}, [f"{RATE} is []; allowed"]),
    ],
)
def test_bad_input(
    parameters: dict, parts: list[str], command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "space.yaml").write_text(yaml.safe_dump({"parameters": parameters}))
    refused(capsys, command, *parts)


def test_a_trial_that_is_not_there(command: list[str], capsys: pytest.CaptureFixture) -> None:
    refused(capsys, [*command, "--cell", "trial/7/0"], "cell is 'trial/7/0'; allowed: trial/NUMBER/SEED")
    refused(capsys, [*command, "--cell", "trial"], "cell is 'trial'")
