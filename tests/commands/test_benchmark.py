"""``bayeslora benchmark``: cells are ordinary runs, share trainings, go on where they stopped, and make a table."""

import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml

from bayeslora.cli import main
from bayeslora.files import run_record
from bayeslora.grid.cells import cell_of
from bayeslora.grid.specification import read_grid
from bayeslora.results.prediction_file import read_predictions
from tests.helpers.command_line import arguments, refused
from tests.helpers.fake_cells import wait_for_the_end
from tests.helpers.ray_nodes import two_nodes
from tools.layout import ROOT

pytestmark = pytest.mark.usefixtures("environment")
TRAINER = {"max_steps": 4, "accelerator": "cpu", "enable_model_summary": False, "log_every_n_steps": 2}


@pytest.fixture(scope="module")
def grid(data: Path) -> Path:
    """The file of a grid on a file of questions."""
    base = {"class_path": "LoRAModule", "init_args": {"backbone": {"pretrained": "embedded"}}}
    questions = {"path": str(data), "labels": 40, "batch_size": 8}
    own = {"data": {"class_path": "JSONLDataModule", "init_args": questions}}
    temperature = {"trainer": {"callbacks+": [{"class_path": "bayeslora.callbacks.Temperature"}]}}
    content = {
        "common": {"options": {"model": base, "trainer": TRAINER}},
        "datasets": {"own": {"configs": [], "options": own}},
        "methods": {
            "mle": {"configs": []},
            "base": {"configs": [], "checkpoint": "base"},
            "temperature": {"configs": [], "of": "mle", "options": temperature},
        },
    }
    file = data.parent / "grid.yaml"
    file.write_text(yaml.safe_dump(content, sort_keys=False))
    return file


@pytest.fixture(scope="module")
def out(grid: Path) -> Path:
    """The folder of the grid's cells, each run by its key in the order that needs them least."""
    folder = grid.parent / "out"
    for method in ("temperature", "base", "mle"):
        assert main(["benchmark", "-c", str(grid), "--out", str(folder), "--cell", f"own/{method}/0"]) == 0
    return folder


def _probs(folder: Path) -> np.ndarray:
    return next(iter(read_predictions(folder / "test" / "predictions.parquet").datasets.values())).probs.numpy()


def test_a_cell_is_an_ordinary_run(out: Path, data: Path, tmp_path: Path) -> None:
    options = ["--trainer.max_steps=4", "--trainer.accelerator=cpu", "--data.batch_size=8"]
    assert main([*arguments("fit", tmp_path / "run", data), *options]) == 0
    assert main([*arguments("test", tmp_path / "run", data), *options]) == 0
    np.testing.assert_array_equal(_probs(out / "own" / "mle" / "seed-0"), _probs(tmp_path / "run"))


def test_rows_that_share_a_training_train_once(out: Path) -> None:
    trained = [folder.parent.parent.name for folder in out.glob("own/*/seed-0/checkpoints")]
    assert trained == ["mle"]
    mle, scaled, base = (_probs(out / "own" / name / "seed-0") for name in ("mle", "temperature", "base"))
    np.testing.assert_array_equal(mle.mean(0).argmax(-1), scaled.mean(0).argmax(-1))
    assert not np.allclose(mle, scaled)
    assert not np.allclose(mle, base)
    spent = run_record(out / "own" / "mle" / "seed-0")["train_seconds"]
    shared = [run_record(out / "own" / name / "seed-0").get("shared_train_seconds") for name in ("mle", "temperature")]
    assert shared == [None, spent]


def test_what_is_done_is_not_done_again(out: Path, grid: Path, capsys: pytest.CaptureFixture) -> None:
    times = {file: file.stat().st_mtime_ns for file in out.rglob("*") if file.name in ("done.json", "last.ckpt")}
    assert main(["benchmark", "-c", str(grid), "--out", str(out), "--cell", "own/mle/0"]) == 0
    assert {file: file.stat().st_mtime_ns for file in times} == times
    attempts = json.loads((out / "own" / "mle" / "seed-0" / "attempts.json").read_text())
    assert attempts["attempts"] == 1
    assert attempts["environment"]["threads"] == 1
    assert main(["benchmark", "-c", str(grid), "--out", str(out)]) == 0
    assert {file: file.stat().st_mtime_ns for file in times} == times
    shown = capsys.readouterr().out
    assert shown.count("1 done") == 3
    assert (out / "tables" / "own.csv").read_text().count("jsonl:data,accuracy,") == 3
    assert ",shared_train_seconds,temperature," in (out / "tables" / "costs-own.csv").read_text()


def test_dry_run_lists_the_cells_and_what_they_will_cost(
    out: Path, grid: Path, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    assert main(["benchmark", "-c", str(grid), "--out", str(out), "--seeds", "0,1", "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert shown.count("other seeds") == 3
    assert shown.count("done") == 3
    assert main(["benchmark", "-c", str(grid), "--out", str(tmp_path / "new"), "--dry-run"]) == 0
    assert "3 cells without an estimate yet" in capsys.readouterr().out
    assert not (tmp_path / "new").exists()


def test_a_folder_of_another_configuration_is_refused(
    out: Path, grid: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    content = yaml.safe_load(grid.read_text())
    content["common"]["options"]["trainer"]["max_steps"] = 5
    (tmp_path / "grid.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    command = ["benchmark", "-c", str(tmp_path / "grid.yaml"), "--out", str(out)]
    refused(capsys, command, "own/mle/seed-0", "configuration trainer.max_steps was 4 and is 5")
    refused(capsys, [*command, "--cell", "own/mle/0"], "trainer.max_steps was 4 and is 5")


def test_questions_that_have_changed_make_another_cell(
    out: Path, grid: Path, data: Path, capsys: pytest.CaptureFixture
) -> None:
    file = data / "test.jsonl"
    before = file.read_text()
    first, _, rest = before.partition("\n")
    file.write_text(json.dumps({**json.loads(first), "question": "Which one?"}) + "\n" + rest)
    try:
        refused(capsys, ["benchmark", "-c", str(grid), "--out", str(out)], "reads questions", "was", "and is")
    finally:
        file.write_text(before)


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        (["--methods", "tfb"], ["method is 'tfb'; allowed: mle, base, temperature"]),
        (["--datasets", "arc"], ["dataset is 'arc'; allowed: own"]),
        (["--seeds", "0,0"], ["--seeds is '0,0'; allowed"]),
        (["--cell", "own/tfb/0"], ["DATASET/METHOD/SEED"]),
        (["--jobs", "0"], ["--jobs is 0; allowed: 1 or more"]),
        (["--submit"], ["--submit belongs to --engine slurm; --engine is local"]),
        (["--gpu-share", "1.5", "--engine", "ray"], ["--gpu-share is 1.5; allowed: 0 to 1, or a whole number"]),
    ],
)
def test_bad_input(options: list[str], parts: list[str], grid: Path, capsys: pytest.CaptureFixture) -> None:
    refused(capsys, ["benchmark", "-c", str(grid), *options], *parts)


def test_a_worker_without_the_data_says_so(
    grid: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    content = yaml.safe_load(grid.read_text())
    content["datasets"]["own"]["options"]["data"]["init_args"]["path"] = str(tmp_path / "none")
    (tmp_path / "grid.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    command = ["benchmark", "-c", str(tmp_path / "grid.yaml"), "--out", str(tmp_path / "out")]
    refused(capsys, [*command, "--cell", "own/mle/0"], "own/mle", str(tmp_path / "none"))
    refused(capsys, command, "own/mle", str(tmp_path / "none"))


def _benchmark(grid: Path, out: Path, *options: str, **environment: str) -> subprocess.Popen:
    command = [sys.executable, str(ROOT / "cli.py"), "benchmark", "-c", str(grid), "--out", str(out), *options]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    return subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(ROOT), **environment}, **quiet)


def test_an_array_is_written_and_what_is_there_is_collected(
    out: Path, grid: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    new = tmp_path / "new"
    assert main(["benchmark", "-c", str(grid), "--out", str(new), "--engine", "slurm"]) == 0
    assert f"3 runs are written; submit them with: bash {new / 'slurm' / 'submit.sh'}" in capsys.readouterr().out
    assert "own/temperature/0" in (new / "slurm" / "after-0.sbatch").read_text()
    shutil.copytree(out, new, dirs_exist_ok=True)
    (new / "own" / "base" / "seed-0" / "done.json").unlink()
    failed = cell_of(read_grid(grid, new), "own/base/0")
    failed.note_failure("no memory")
    assert main(["benchmark", "-c", str(grid), "--out", str(new), "--collect"]) == 1
    assert "failed: own/base/0: no memory" in capsys.readouterr().out
    assert (new / "tables" / "own.csv").read_text().count("jsonl:data,accuracy,") == 2
    assert "Not done, and not in the tables: own/base/0" in (new / "tables" / "index.html").read_text()


@pytest.fixture
def tables(out: Path, grid: Path) -> dict[str, bytes]:
    """The tables of the cells that were run by their keys."""
    assert main(["benchmark", "-c", str(grid), "--out", str(out), "--collect"]) == 0
    return _tables(out)


def _tables(out: Path) -> dict[str, bytes]:
    return {name: (out / "tables" / name).read_bytes() for name in ("own.csv", "own.md", "own.tex", "index.html")}


def _children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.slow
def test_on_two_nodes_of_a_ray_cluster_the_tables_are_the_same(
    tables: dict[str, bytes], grid: Path, tmp_path: Path
) -> None:
    pytest.importorskip("ray", reason="needs Ray: pip install 'bayeslora[ray]'")
    with two_nodes() as cluster:
        engine = ["--engine", "ray", "--address", cluster.address, "--gpu-share", "0"]
        assert main(["benchmark", "-c", str(grid), "--out", str(tmp_path), *engine]) == 0
    assert _tables(tmp_path) == tables


@pytest.mark.slow
def test_two_at_a_time_and_killed_three_times_the_tables_are_the_same(
    tables: dict[str, bytes], grid: Path, tmp_path: Path
) -> None:
    """Cells are killed in their training, in their test and once more; what is left runs as two processes at a time."""
    killed = tmp_path / "killed"
    mle, temperature = (killed / "own" / name / "seed-0" for name in ("mle", "temperature"))
    _killed_cell(grid, killed, "own/mle/0", lambda: (mle / "checkpoints" / "last.ckpt").exists())
    _killed_cell(grid, killed, "own/mle/0", lambda: (mle / "trained.json").exists())
    _killed_cell(grid, killed, "own/temperature/0", lambda: (temperature / "test").exists())
    assert main(["benchmark", "-c", str(grid), "--out", str(killed), "--cell", "own/temperature/0"]) == 0
    assert main(["benchmark", "-c", str(grid), "--out", str(killed), "--jobs", "2"]) == 0
    assert _tables(killed) == tables
    attempts = [cell_of(read_grid(grid, killed), f"own/{name}/0").attempts() for name in ("mle", "temperature")]
    assert attempts == [(3, None), (2, None)]


def _killed_cell(grid: Path, out: Path, key: str, when: Callable[[], bool]) -> None:
    """Run a cell in a process that is killed as soon as something holds; a fork, which has loaded all it needs."""
    process = multiprocessing.get_context("fork").Process(
        target=main, args=(["benchmark", "-c", str(grid), "--out", str(out), "--cell", key],)
    )
    process.start()
    while not when():
        assert process.is_alive()
        time.sleep(0.01)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL


@pytest.mark.skipif(not os.environ.get("BAYESLORA_LONG"), reason="minutes; set BAYESLORA_LONG=1")
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="processes end with their parent on Linux alone")
def test_killed_with_its_cells_the_command_goes_on(tables: dict[str, bytes], grid: Path, tmp_path: Path) -> None:
    """A cell's process is killed when its training has a checkpoint, then the parent, then the parent once more."""
    killed = tmp_path / "killed"
    found = _benchmark(grid, killed, "--jobs", "2")
    _wait_for(found, lambda: (killed / "own/mle/seed-0/checkpoints/last.ckpt").exists())
    for child in _children(found.pid):
        os.kill(child, signal.SIGKILL)
    _kill(found)
    found = _benchmark(grid, killed, "--jobs", "2")
    _wait_for(found, lambda: bool(_children(found.pid)))
    _kill(found)
    assert _benchmark(grid, killed, "--jobs", "2").wait() == 0
    assert _tables(killed) == tables
    assert cell_of(read_grid(grid, killed), "own/mle/0").attempts()[0] >= 2


def _wait_for(process: subprocess.Popen, holds: Callable[[], bool]) -> None:
    while not holds():
        assert process.poll() is None
        time.sleep(0.05)


def _kill(process: subprocess.Popen) -> None:
    """Kill the parent, and wait until its cells have ended with it."""
    children = _children(process.pid)
    process.send_signal(signal.SIGKILL)
    process.wait()
    for child in children:
        wait_for_the_end(child)


@pytest.mark.slow
def test_a_cell_within_a_slurm_job_is_the_same(out: Path, grid: Path, tmp_path: Path) -> None:
    """In a job array's environment Lightning would ask for four tasks, log on the first alone, and load hpc_ckpt."""
    folder = tmp_path / "array" / "own" / "base" / "seed-0"
    folder.mkdir(parents=True)
    shutil.copy(out / "own/mle/seed-0/checkpoints/last.ckpt", folder / "hpc_ckpt_1.ckpt")
    job = {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "4", "SLURM_PROCID": "3", "SLURM_JOB_NAME": "train"}
    assert _benchmark(grid, tmp_path / "array", "--cell", "own/base/0", **job).wait() == 0
    np.testing.assert_array_equal(_probs(folder), _probs(out / "own" / "base" / "seed-0"))
    assert list(folder.glob("logs/test/metrics.csv"))


@pytest.mark.skipif(not os.environ.get("BAYESLORA_LONG"), reason="minutes; set BAYESLORA_LONG=1")
def test_on_ray_a_cell_is_the_same(out: Path, grid: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ray", reason="needs Ray: pip install 'bayeslora[ray]'")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    rows = ["--methods", "base", "--engine", "ray"]
    assert main(["benchmark", "-c", str(grid), "--out", str(tmp_path), *rows]) == 0
    np.testing.assert_array_equal(_probs(tmp_path / "own/base/seed-0"), _probs(out / "own" / "base" / "seed-0"))
