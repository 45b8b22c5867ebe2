"""The engine of one machine, with cells that do nothing but what a test asks of them."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bayeslora.grid.environment import DEVICES, put_right
from bayeslora.grid.local import LocalEngine
from bayeslora.grid.schedule import run_cells
from tests.helpers.fake_cells import command, fake_cell, started, wait_for_the_end
from tools.layout import ROOT


@pytest.fixture(autouse=True)
def path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


def test_a_cell_that_fails_leaves_the_others_alone(tmp_path: Path) -> None:
    killed, wrong, good, exits = (fake_cell(tmp_path, name) for name in ("killed", "wrong", "good", "exits"))
    after_wrong, after_good = fake_cell(tmp_path, "after_wrong"), fake_cell(tmp_path, "after_good")
    told: list[tuple[str, str]] = []
    failures = run_cells(
        LocalEngine(2, 1, [], command(tmp_path)),
        [killed, wrong, after_wrong, good, after_good, exits],
        {after_wrong: wrong, after_good: good},
        lambda cell, status: told.append((cell.method, status)),
    )
    assert {cell.method for cell in failures} == {"killed", "wrong", "after_wrong", "exits"}
    assert "ended by signal 9" in failures[killed]
    assert "ended with status 0; see" in failures[exits]
    assert failures[wrong] == "it is wrong"
    assert failures[after_wrong] == "arc/wrong/0, whose training it uses, has failed"
    assert good.done()
    assert after_good.done()
    assert ("after_wrong", "not run") in told
    assert told.index(("good", "done")) < told.index(("after_good", "running"))
    assert "after_wrong" not in {entry["key"].split("/")[1] for entry in started(tmp_path)}


def test_cells_see_their_own_device_their_threads_and_no_launcher(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("SLURM_PROCID", "SLURM_NTASKS", "RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_PORT"):
        monkeypatch.setenv(name, "3")
    engine = LocalEngine(2, 5, ["0", "7"], command(tmp_path))
    assert not run_cells(engine, [fake_cell(tmp_path, "good", seed) for seed in (0, 1)], {}, lambda *_: None)
    found = started(tmp_path)
    assert {entry[DEVICES] for entry in found} == {"0", "7"}
    for entry in found:
        assert not [name for name in entry if name.startswith("SLURM_") or name in ("RANK", "LOCAL_RANK")]
        assert entry["OMP_NUM_THREADS"] == "5"
        assert entry["MASTER_PORT"] != "3"


def test_without_gpus_a_cell_sees_none() -> None:
    environment = {DEVICES: "0,1", "SLURM_JOB_ID": "1", "HOME": "/home"}
    put_right(environment, 2, "")
    assert environment[DEVICES] == ""
    assert "SLURM_JOB_ID" not in environment
    assert environment["HOME"] == "/home"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="processes end with their parent on Linux alone")
@pytest.mark.parametrize("ending", [signal.SIGKILL, signal.SIGTERM])
def test_cells_end_with_the_engine(tmp_path: Path, ending: signal.Signals) -> None:
    code = (
        "from pathlib import Path\n"
        "from bayeslora.grid.local import LocalEngine\n"
        "from bayeslora.grid.schedule import run_cells\n"
        "from bayeslora.signals import signals_stop_the_command\n"
        "from tests.helpers.fake_cells import command, fake_cell\n"
        f"root = Path({str(tmp_path)!r})\n"
        "cells = [fake_cell(root, 'endless', seed) for seed in (0, 1)]\n"
        "with signals_stop_the_command():\n"
        "    run_cells(LocalEngine(2, 1, [], command(root)), cells, {}, lambda *_: None)\n"
    )
    engine = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)
    while len(started(tmp_path)) < 2:
        assert engine.poll() is None
        time.sleep(0.05)
    engine.send_signal(ending)
    engine.wait(60)
    for entry in started(tmp_path):
        wait_for_the_end(int(entry["pid"]))
