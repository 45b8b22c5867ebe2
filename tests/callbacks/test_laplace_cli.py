"""Laplace from the command line: the overlay, the command on finished runs and adapters, every checkpoint, refusals."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from bayeslora.cli import main
from bayeslora.commands.laplace import as_tests
from bayeslora.curvature.fit import load_full
from bayeslora.posteriors.laplace.fit import Prior
from bayeslora.posteriors.laplace.full import FullPosterior
from bayeslora.posteriors.state import load_posterior
from bayeslora.results.prediction_file import read_predictions
from tests.helpers.command_line import metrics
from tests.helpers.swag_runs import arguments

METHODS = Path(__file__).parent.parent.parent / "bayeslora" / "configs" / "method"
_ZERO = "--trainer.callbacks.prior_mean=zero"  # an adapter's initial weights are not known
OVERLAY, LAST, TEMPERATURE = (METHODS / f"{name}.yaml" for name in ("laplace", "laplace_last_layer", "temperature"))


@pytest.fixture(scope="module")
def fitted(data: Path) -> Path:
    """A run that Laplace was attached to."""
    root = data.parent / "fitted"
    assert main(arguments("fit", root, data, f"-c={OVERLAY}")) == 0
    return root


@pytest.fixture(scope="module")
def plain(data: Path) -> Path:
    """A run without it."""
    root = data.parent / "plain"
    assert main(arguments("fit", root, data)) == 0
    return root


def folder(root: Path) -> Path:
    (only,) = (root / "laplace").iterdir()
    return only


def command(root: Path, data: Path, tmp_path: Path, *options: str) -> list[str]:
    """``bayeslora laplace`` with the options of the run as a configuration."""
    _, *options_of_run = arguments("test", root, data)
    config = tmp_path / "empty.yaml"
    config.write_text("{}\n")
    return ["laplace", "-c", str(config), *options_of_run, *options]


def test_fit_leaves_the_posterior_and_test_uses_it_with_temperature(fitted: Path, data: Path) -> None:
    posterior = load_posterior(fitted / "posterior")
    assert isinstance(posterior, FullPosterior)
    adapter = load_file(fitted / "posterior" / "adapter_model.safetensors")
    assert adapter.keys() == posterior.mean().keys()
    shards = sorted((folder(fitted) / "train").iterdir())
    before = [shard.stat().st_mtime_ns for shard in shards]
    assert main(arguments("test", fitted, data, f"-c={OVERLAY}", f"-c={TEMPERATURE}")) == 0
    assert [shard.stat().st_mtime_ns for shard in sorted((folder(fitted) / "train").iterdir())] == before
    assert metrics(fitted)["method"] == "mle+laplace+temperature"
    again = load_posterior(fitted / "posterior")
    assert torch.equal(again.curvature, posterior.curvature)
    answers = next(iter(read_predictions(fitted / "test" / "predictions.parquet").datasets.values()))
    assert answers.logit_cov is not None
    report = json.loads((folder(fitted) / "report.json").read_text())
    assert {"questions", "dropped", "m", "precision", "gamma", "eigenvalues", "stages"} <= report.keys()
    assert report["gamma"]["all"] == pytest.approx(report["precision"]["all"] * report["squared_distance"]["all"])
    assert all(stage["seconds"] >= 0 and stage["peak_bytes"] > 0 for stage in report["stages"].values())


def test_another_prior_needs_no_model(fitted: Path) -> None:
    fit = load_full(folder(fitted))
    posterior, _, report = fit.choose(Prior("evidence", mean="initial"))  # as the overlay asks
    kept = json.loads((folder(fitted) / "report.json").read_text())
    assert report["precision"]["all"] == pytest.approx(kept["precision"]["all"])
    by_validation = fit.choose(Prior("validation", mean="initial"))[2]
    assert by_validation["validation_nll"] <= report["validation_nll"] + 1e-6
    around_zero = fit.choose(Prior("evidence"))[2]
    assert around_zero["squared_distance"]["all"] > report["squared_distance"]["all"]
    assert around_zero["precision"]["all"] < report["precision"]["all"]
    saved = load_posterior(fitted / "posterior")
    assert all(torch.equal(posterior.mean()[name], value) for name, value in saved.mean().items())
    tuned = fit.choose(Prior("evidence", mean="initial", scale="validation", temperature="validation"))
    assert tuned[2]["validation_nll"] <= report["validation_nll"] + 1e-6
    assert tuned[1].temperature != 1.0


def test_the_command_on_a_finished_run_and_on_an_adapter(plain: Path, data: Path, tmp_path: Path) -> None:
    options = ["--trainer.callbacks.precision=30", "--trainer.callbacks.subset_of_weights=B"]
    assert main(command(plain, data, tmp_path, "--ckpt_path=last", *options)) == 0
    assert metrics(plain)["method"] == "mle+laplace_b"
    posterior = load_posterior(plain / "posterior")
    assert isinstance(posterior, FullPosterior)
    assert set(posterior.precision.values()) == {30.0}
    assert all(".lora_B." in name for name in posterior.precision)
    other = tmp_path / "adapter"
    adapter = f"--adapter={plain / 'posterior'}"
    assert main(command(other, data, tmp_path, adapter, *options)) == 0
    one, two = (json.loads((root / "test" / "metrics.json").read_text())["datasets"] for root in (plain, other))
    assert one == two


def test_every_checkpoint_of_a_run(plain: Path, data: Path, tmp_path: Path) -> None:
    assert main(command(plain, data, tmp_path, "--ckpt_path=all", "--trainer.callbacks.precision=30")) == 0
    assert {path.name for path in (plain / "laplace_steps").iterdir()} == {"last", "best"}
    for step in (plain / "laplace_steps").iterdir():
        assert metrics(step)["method"] == "mle+laplace"


def test_the_last_layer_alone(plain: Path, data: Path, tmp_path: Path) -> None:
    root = tmp_path / "last"
    options = [f"-c={LAST}", f"--model.backbone.adapter={plain / 'posterior'}"]
    assert main(arguments("test", root, data, *options)) == 0
    assert metrics(root)["method"] == "mle+laplace_last"
    numbers = {name.split(".layers.")[1].split(".")[0] for name in load_posterior(root / "posterior").precision}
    assert len(numbers) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--trainer.callbacks.predict=samples"], "does not sample weights"),
        (["--trainer.callbacks.structure=exact"], "structure is 'exact'; allowed: full"),
        (["--trainer.callbacks.precision=-1"], "precision is -1"),
        (["--trainer.callbacks.subset_of_weights=middle"], "subset_of_weights is 'middle'; allowed"),
        (["--trainer.callbacks.dtype=int8"], "dtype is 'int8'; allowed"),
        (["--trainer.callbacks.prior_mean=initial"], "initial weights are not known"),
        (["--trainer.callbacks.directory=/proc/nowhere"], "directory"),
    ],
)
def test_refusals_are_one_line(
    plain: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture, options: list[str], message: str
) -> None:
    adapter = [f"--model.backbone.adapter={plain / 'posterior'}"]
    capsys.readouterr()
    assert main(arguments("test", tmp_path / "run", data, f"-c={OVERLAY}", *adapter, _ZERO, *options)) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("bayeslora: error:")]
    assert len(lines) == 1
    assert message in lines[0]
    assert not (tmp_path / "run" / "test").exists()


def test_the_commands_own_refusals(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    config = tmp_path / "c.yaml"
    config.write_text("{}\n")
    for args, message in (
        (["--ckpt_path", "last"], "needs -c CONFIG"),
        (["-c", str(config), "--ckpt_path", "last", "--adapter", "x"], "one of them"),
        (["-c", str(config), "--ckpt_path", "all", "--trainer.default_root_dir", str(tmp_path)], "has no checkpoints"),
    ):
        assert main(["laplace", *args]) == 2
        assert message in capsys.readouterr().err
    assert main(["laplace", "--help"]) == 0
    assert as_tests(["-c", str(OVERLAY), "--overwrite"]) == [["test", f"--config={OVERLAY}", "--overwrite"]]


def test_every_checkpoint_is_looked_for_where_the_configurations_put_the_run(tmp_path: Path) -> None:
    first, second = tmp_path / "first.yaml", tmp_path / "second.yaml"
    first.write_text("trainer: {default_root_dir: elsewhere}\n")
    second.write_text(f"trainer: {{default_root_dir: {tmp_path / 'run'}}}\n")
    checkpoint = tmp_path / "run" / "checkpoints" / "last.ckpt"
    checkpoint.parent.mkdir(parents=True)
    checkpoint.touch()
    (one,) = as_tests(["-c", str(first), "-c", str(second), "-c", str(OVERLAY), "--ckpt_path", "all"])
    assert one[-2:] == [
        f"--ckpt_path={checkpoint}",
        f"--trainer.default_root_dir={tmp_path / 'run' / 'laplace_steps' / 'last'}",
    ]
