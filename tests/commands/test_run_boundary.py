"""Where a run begins and ends: its folder, the weights it tests, what it trusts, signals, and errors in one line."""

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from filelock import FileLock

from bayeslora.cli import _how_to_go_on, main
from bayeslora.commands.arguments import callback
from bayeslora.signals import Stopped
from tests.helpers.command_line import arguments, refused

ROOT = Path(__file__).parents[2]


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A finished run that a test may change."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


def _rank(run: Path) -> int:
    state = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    return next(value.shape[0] for name, value in state.items() if "lora_A" in name)


# --- the run folder -------------------------------------------------------------------------------------------------


def test_a_home_folder_is_expanded_everywhere(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert main(arguments("fit", Path("~/r"), data)) == 0
    assert not (tmp_path / "~").exists()
    refused(capsys, arguments("fit", Path("~/r"), data), str(tmp_path / "r"), "--overwrite")
    assert main(arguments("test", Path("~/r"), data)) == 0
    assert (tmp_path / "r" / "test" / "metrics.json").exists()


def test_a_run_that_was_moved_goes_on_where_it_is_now(run: Path, data: Path, tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    run.rename(moved)
    assert main(arguments("fit", run, data, "--seed_everything=7")) == 0
    other = (run / "checkpoints" / "last.ckpt").read_bytes()
    checkpoint = moved / "checkpoints" / "last.ckpt"
    assert main(["fit", f"--ckpt_path={checkpoint}", "--trainer.max_epochs=2"]) == 0
    assert (run / "checkpoints" / "last.ckpt").read_bytes() == other
    assert torch.load(checkpoint, weights_only=True)["epoch"] == 1


def test_a_checkpoint_of_another_run_does_not_overwrite_this_one(
    run: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    theirs = tmp_path / "theirs"
    shutil.copytree(run, theirs)
    checkpoint = f"--ckpt_path={theirs / 'checkpoints' / 'last.ckpt'}"
    refused(capsys, arguments("fit", run, data, checkpoint), str(run), "already holds a run")


@pytest.mark.parametrize("option", ["--trainer.fast_dev_run=true", "--trainer.barebones=true"])
def test_a_trial_leaves_nothing(option: str, data: Path, tmp_path: Path) -> None:
    options = ["--trainer.max_epochs=1"] if "barebones" in option else []
    trial = [arg for arg in arguments("fit", tmp_path / "run", data, *options, option) if "enable_" not in arg]
    assert main(trial) == 0
    assert [path for path in (tmp_path / "run").rglob("*") if path.is_file() and path.name != ".lock"] == []
    assert main(arguments("fit", tmp_path / "run", data)) == 0


def test_a_second_process_is_refused(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    root = tmp_path / "run"
    root.mkdir()
    with FileLock(root / ".lock", fallback_to_soft=False):
        refused(capsys, arguments("fit", root, data), "another process", str(root))
    assert main(arguments("fit", root, data)) == 0


def test_a_run_folder_that_cannot_be_made(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "file").write_text("")
    refused(capsys, arguments("fit", tmp_path / "file" / "run", data), "cannot be written to", "default_root_dir")


# --- what is asked for ----------------------------------------------------------------------------------------------


def test_options_beat_files_wherever_they_stand(data: Path, tmp_path: Path) -> None:
    overlay = tmp_path / "overlay.yaml"
    overlay.write_text("model: {class_path: LoRAModule, init_args: {lora: {r: 2}}}\n")
    assert main([*arguments("fit", tmp_path / "run", data, "--model.lora.r=3"), "-c", str(overlay)]) == 0
    assert _rank(tmp_path / "run") == 3


def test_every_branch_says_which_weights_it_tests(
    finished: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    adapter = f"--model.backbone.adapter={finished / 'posterior'}"
    root, own = tmp_path / "run", tmp_path / "run" / "checkpoints" / "last.ckpt"
    assert main(arguments("fit", root, data, adapter, "--model.optimisation.learning_rate=0.01")) == 0
    found = {}
    for name, option in (("last", ()), ("adapter", ("--ckpt_path=adapter",)), ("base", ("--ckpt_path=base",))):
        capsys.readouterr()
        assert main(arguments("test", root, data, adapter, "--overwrite", *option)) == 0
        found[name] = capsys.readouterr().out
    assert f"weights: {own} (trained on from {finished / 'posterior'}" in found["last"]
    assert f"weights: the adapter in {finished / 'posterior'}" in found["adapter"]
    assert "weights: the base model" in found["base"]


def test_a_callback_is_found_by_parsing_not_by_its_name_in_a_remark(tmp_path: Path) -> None:
    file, path = tmp_path / "c.yaml", "bayeslora.callbacks.Laplace"
    for text, named in (
        ("# bayeslora.callbacks.Laplace may follow\nmodel: LoRAModule\n", False),
        ("trainer: {callbacks: [{class_path: bayeslora.callbacks.Laplace}]}\n", True),
        ("trainer: {callbacks+: [{class_path: bayeslora.Laplace}]}\n", True),
        ("trainer: {callbacks+: Laplace}\n", True),
        ("trainer: {callbacks: [{class_path: other.Laplace}]}\n", False),
    ):
        file.write_text(text)
        assert callback(path, [str(file)]) == ([] if named else [f"--trainer.callbacks+={path}"])


# --- what is trusted ------------------------------------------------------------------------------------------------


def test_a_checkpoint_imports_no_class_that_nobody_asked_for(
    run: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "evilmod.py").write_text("open('was_imported', 'w').close()\nclass Evil: pass\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    file = run / "checkpoints" / "last.ckpt"
    checkpoint = torch.load(file, weights_only=True)
    checkpoint["hyper_parameters"]["_class_path"] = "evilmod.Evil"
    torch.save(checkpoint, file)
    overlay = tmp_path / "o.yaml"
    overlay.write_text("seed_everything: 0\n")
    refused(capsys, ["test", "-c", str(overlay), f"--ckpt_path={file}"], "evilmod.Evil", "--trust-config")
    assert not (tmp_path / "was_imported").exists()


@pytest.mark.parametrize(
    "planted",
    [
        {"class_path": "lightning.pytorch.callbacks.LambdaCallback", "init_args": {"on_fit_start": "os.system"}},
        {"class_path": "LambdaCallback", "init_args": {"on_fit_start": "os.system"}},
        {"class_path": "bayeslora.callbacks.Temperature", "init_args": {"logits_fn": "os.system"}},
        "evilmod.Callback",
    ],
)
def test_a_run_folders_configuration_is_data(planted: object, run: Path, capsys: pytest.CaptureFixture) -> None:
    file = run / "fit-config.yaml"
    config = yaml.safe_load(file.read_text())
    config["trainer"]["callbacks"] = [planted]
    file.write_text(yaml.safe_dump(config))
    refused(capsys, ["fit", f"--ckpt_path={run / 'checkpoints' / 'last.ckpt'}"], "not a class of this package")


@pytest.mark.parametrize("place", [("model",), ("data",), ("trainer", "profiler"), ("trainer", "logger")])
@pytest.mark.parametrize("value", ["evilmod.Evil", "/somewhere/evil.yaml"])
def test_a_class_cannot_be_named_by_a_bare_text_either(
    place: tuple[str, ...], value: str, run: Path, capsys: pytest.CaptureFixture
) -> None:
    file = run / "fit-config.yaml"
    config = yaml.safe_load(file.read_text())
    section = config
    for key in place[:-1]:
        section = section[key]
    section[place[-1]] = value
    file.write_text(yaml.safe_dump(config))
    refused(capsys, ["test", f"--ckpt_path={run / 'checkpoints' / 'last.ckpt'}"], value, "not a class of this package")


# --- signals --------------------------------------------------------------------------------------------------------


def _signalled(args: list[str], number: int, when: Path) -> subprocess.CompletedProcess[str]:
    """Run a command in a process of its own, and send it a signal as soon as a file is there."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(ROOT / "cli.py"), *args]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
    while not when.exists() and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(number)
    out, err = process.communicate()
    return subprocess.CompletedProcess(command, process.returncode, out, err)


def _weights(run: Path) -> dict[str, torch.Tensor]:
    return torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]


@pytest.fixture(scope="module")
def uninterrupted(data: Path) -> dict[str, torch.Tensor]:
    """The weights of a run that no signal has met."""
    assert main(arguments("fit", data.parent / "whole", data, *LONG)) == 0
    return _weights(data.parent / "whole")


LONG = ["--trainer.max_epochs=60", "--model.lora.dropout=0.1"]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_the_named_command_ends_as_if_none_had_come(
    number: signal.Signals, data: Path, uninterrupted: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    root = tmp_path / "run"
    done = _signalled(arguments("fit", root, data, *LONG), number, root / "checkpoints" / "last.ckpt")
    assert done.returncode == 128 + number
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("bayeslora:")]
    assert number.name in line
    assert "Traceback" not in done.stderr
    assert torch.load(root / "checkpoints" / "last.ckpt", weights_only=True)["epoch"] < 59
    assert main(shlex.split(line.partition("go on with: bayeslora ")[2])) == 0
    found = _weights(root)
    assert found.keys() == uninterrupted.keys()
    assert all(torch.equal(value, uninterrupted[name]) for name, value in found.items())


def test_the_command_to_go_on_with_names_the_runs_own_checkpoint() -> None:
    """A fit that began from another run's checkpoint goes on from its own."""
    for given in (["--ckpt_path", "other.ckpt"], ["--ckpt_path=other.ckpt"], []):
        said = _how_to_go_on(Stopped(signal.SIGTERM, "run/checkpoints/last.ckpt"), ["fit", *given, "-c", "a.yaml"])
        assert said.endswith("go on with: bayeslora fit -c a.yaml --ckpt_path last")
    said = _how_to_go_on(Stopped(signal.SIGTERM, "x/last.ckpt"), ["ensemble", "-c", "a.yaml"])
    assert said.endswith("go on with: bayeslora ensemble -c a.yaml")  # which finds its own


def test_a_checkpoint_of_slurms_requeueing_is_refused(
    run: Path, data: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lightning would load it in place of whatever is asked for, in a run that is spread over SLURM's tasks."""
    monkeypatch.setenv("SLURM_NTASKS", "2")
    monkeypatch.setenv("SLURM_JOB_NAME", "train")
    shutil.copy(run / "checkpoints" / "last.ckpt", run / "hpc_ckpt_1.ckpt")
    for option in ([], ["--ckpt_path=base"]):
        options = ["--trainer.devices=2", *option]
        refused(capsys, arguments("test", run, data, *options), "hpc_ckpt_1.ckpt", "SLURM")


def test_a_signal_before_training_ends_at_once(data: Path, tmp_path: Path) -> None:
    done = _signalled(arguments("fit", tmp_path / "run", data), signal.SIGTERM, tmp_path)
    assert done.returncode in (143, -signal.SIGTERM)  # the latter where Python itself had not begun yet


# --- errors ---------------------------------------------------------------------------------------------------------


def test_errors_of_libraries_are_one_line_and_debug_shows_the_rest(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    missing = ["--trainer.logger=lightning.pytorch.loggers.CometLogger"]
    assert main(arguments("fit", tmp_path / "a", data, *missing)) != 0
    error = capsys.readouterr().err
    assert "Traceback" not in error
    assert sum(line.startswith("bayeslora: error:") for line in error.splitlines()) == 1
    assert main([*arguments("fit", tmp_path / "b", data, *missing), "--debug"]) != 0
    assert "Traceback" in capsys.readouterr().err


def test_a_full_disk_is_named(monkeypatch: pytest.MonkeyPatch, data: Path, tmp_path: Path, capsys) -> None:
    def full(*args: object, **kwargs: object) -> None:
        raise RuntimeError("[enforce fail at inline_container.cc:664] . unexpected pos 64 vs 0")

    monkeypatch.setattr(torch, "save", full)
    assert main(arguments("fit", tmp_path / "run", data)) == 1
    assert "the disk is full" in capsys.readouterr().err


def test_a_damaged_record_of_a_run_is_one_line(run: Path, data: Path, capsys: pytest.CaptureFixture) -> None:
    (run / "run.json").write_bytes(b"\xff\xfe{")
    refused(capsys, arguments("test", run, data), "run.json", "damaged")
    (run / "run.json").write_text(json.dumps([1]))
    refused(capsys, arguments("test", run, data), "run.json", "damaged")
