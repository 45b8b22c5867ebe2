"""The engine of one machine, with cells that do nothing but what a test asks of them."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import bayeslora.grid.local as local
from bayeslora.grid.cells import Cell
from bayeslora.grid.environment import DEVICES, put_right
from bayeslora.grid.local import LocalEngine
from tools.layout import ROOT

# A stand-in for the command: the last argument is the cell's key, the one in front of it the folder of all cells.
FAKE = """
import json, os, sys
from pathlib import Path
from bayeslora.grid.cells import DONE, Cell
root, key = Path(sys.argv[-3]), sys.argv[-1]
dataset, method, seed = key.split("/")
cell = Cell(dataset, method, int(seed), root / method / seed)
cell.note_attempt({})
with (root / "started").open("a") as file:
    file.write(json.dumps({"key": key, "pid": os.getpid(), **dict(os.environ)}) + "\\n")
if method == "killed":
    os.kill(os.getpid(), 9)
if method == "wrong":
    cell.note_failure("it is wrong")
    sys.exit(2)
if method == "endless":
    from bayeslora.grid.environment import end_with
    end_with(os.environ)
    import time
    time.sleep(600)
(cell.folder / "test").mkdir()
(cell.folder / "test" / "predictions.parquet").write_text(key)
cell.end(DONE)
"""


@pytest.fixture(autouse=True)
def fake(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "_CONSOLE", FAKE)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


def _cell(root: Path, method: str, seed: int = 0) -> Cell:
    return Cell("arc", method, seed, root / method / str(seed))


def _started(root: Path) -> list[dict[str, str]]:
    file = root / "started"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def test_a_cell_that_fails_leaves_the_others_alone(tmp_path: Path) -> None:
    killed, wrong, good = (_cell(tmp_path, name) for name in ("killed", "wrong", "good"))
    after_wrong, after_good = _cell(tmp_path, "after_wrong"), _cell(tmp_path, "after_good")
    told: list[tuple[str, str]] = []
    failures = LocalEngine(2, 1, [], [str(tmp_path)]).run(
        [killed, wrong, after_wrong, good, after_good],
        {after_wrong: wrong, after_good: good},
        lambda cell, status: told.append((cell.method, status)),
    )
    assert {cell.method for cell in failures} == {"killed", "wrong", "after_wrong"}
    assert "ended by signal 9" in failures[killed]
    assert failures[wrong] == "it is wrong"
    assert failures[after_wrong] == "arc/wrong/0, whose training it uses, has failed"
    assert good.done()
    assert after_good.done()
    assert ("after_wrong", "not run") in told
    assert told.index(("good", "done")) < told.index(("after_good", "running"))
    assert "after_wrong" not in {entry["key"].split("/")[1] for entry in _started(tmp_path)}


def test_cells_see_their_own_device_their_threads_and_no_launcher(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("SLURM_PROCID", "SLURM_NTASKS", "RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_PORT"):
        monkeypatch.setenv(name, "3")
    engine = LocalEngine(2, 5, ["0", "7"], [str(tmp_path)])
    assert not engine.run([_cell(tmp_path, "good", seed) for seed in (0, 1)], {}, lambda *_: None)
    found = _started(tmp_path)
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
        "import sys, bayeslora.grid.local as local; from pathlib import Path\n"
        "from bayeslora.grid.cells import Cell\n"
        "from bayeslora.signals import Stopped, signals_stop_the_command\n"
        f"local._CONSOLE = {FAKE!r}\n"
        f"cells = [Cell('arc', 'endless', seed, Path({str(tmp_path)!r}) / 'endless' / str(seed)) for seed in (0, 1)]\n"
        "with signals_stop_the_command():\n"
        f"    local.LocalEngine(2, 1, [], [{str(tmp_path)!r}]).run(cells, {{}}, lambda *_: None)\n"
    )
    engine = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)
    while len(_started(tmp_path)) < 2:
        assert engine.poll() is None
        time.sleep(0.05)
    engine.send_signal(ending)
    engine.wait(60)
    for entry in _started(tmp_path):
        _wait_for_the_end(int(entry["pid"]))


def _wait_for_the_end(pid: int) -> None:
    """A process that is not ours to wait for; a zombie has ended."""
    while Path(f"/proc/{pid}").exists() and "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2][:3]:
        os.kill(pid, 0)
        time.sleep(0.05)
