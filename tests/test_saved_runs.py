"""A run folder as version 0.1.0 wrote it still loads: its configuration, checkpoint, posterior and predictions.

``tests/assets/run_0.1.0`` is SWAG with a temperature on the embedded benchmark: rank 1, 40 labels, four epochs.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from bayeslora import load_posterior
from bayeslora.cli import main
from bayeslora.results.prediction_file import read_predictions

SAVED = Path(__file__).parent / "assets" / "run_0.1.0"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return Path(shutil.copytree(SAVED, tmp_path / "run"))


def _command(command: str, run: Path, *options: str) -> int:
    configuration = str(run / "fit-config.yaml")
    return main([command, "-c", configuration, "--trainer.default_root_dir", str(run), *options])


def test_test_gives_the_predictions_it_gave(run: Path) -> None:
    old = read_predictions(run / "test" / "predictions.parquet")
    assert _command("test", run, "--overwrite") == 0
    new = read_predictions(run / "test" / "predictions.parquet")
    assert list(new.datasets) == list(old.datasets)
    for name, answers in old.datasets.items():
        np.testing.assert_array_equal(new.datasets[name].example_id, answers.example_id)
        np.testing.assert_allclose(new.datasets[name].probs, answers.probs, atol=1e-6)
    before = json.loads((SAVED / "test" / "metrics.json").read_text())["datasets"]["synthetic"]
    after = json.loads((run / "test" / "metrics.json").read_text())["datasets"]["synthetic"]
    assert after["nll"] == pytest.approx(before["nll"], abs=1e-6)


def test_fit_goes_on_from_its_checkpoint(run: Path) -> None:
    checkpoint = run / "checkpoints" / "last.ckpt"
    assert _command("fit", run, "--ckpt_path", str(checkpoint), "--trainer.max_epochs", "5") == 0


def test_it_is_said_that_noise_is_drawn_by_tokens_now(run: Path) -> None:
    with pytest.warns(UserWarning, match="noise was drawn by a question's dataset and row"):
        assert _command("test", run, "--overwrite") == 0
    assert _command("fit", run, "--overwrite", "--trainer.max_epochs", "1") == 0
    assert json.loads((run / "run.json").read_text())["noise"] == "tokens"


def test_its_posterior_loads() -> None:
    posterior = load_posterior(SAVED / "posterior")
    assert posterior.family == "swag"
    assert all(values.isfinite().all() for values in posterior.mean().values())
