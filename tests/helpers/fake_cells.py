"""Cells whose process does nothing but what a test asks of it, by the name of its method; no torch, half a second."""

import json
import os
import time
from pathlib import Path

from bayeslora.grid.cells import Cell

# A stand-in for the command: the last argument is the cell's key, the one before the folder of all cells.
PROGRAM = """
import json, os, sys, time
from pathlib import Path
from bayeslora.grid.cells import DONE, Cell
root, key = Path(sys.argv[-2]), sys.argv[-1]
dataset, method, seed = key.split("/")
cell = Cell(dataset, method, int(seed), root / method / seed)
with cell.locked():
    cell.note_attempt({})
    with (root / "started").open("a") as file:
        own = {"key": key, "pid": os.getpid(), "parent": os.getppid(), "directory": os.getcwd()}
        file.write(json.dumps({**own, **dict(os.environ)}) + "\\n")
    if method == "killed":
        os.kill(os.getpid(), 9)
    if method == "exits":
        sys.exit(0)
    if method == "wrong":
        cell.note_failure("it is wrong")
        sys.exit(2)
    if method == "endless" or (method == "endless_at_first" and cell.attempts()[0] == 1):
        from bayeslora.grid.environment import end_with
        end_with(os.environ)
        time.sleep(600)
    (cell.folder / "test").mkdir()
    (cell.folder / "test" / "predictions.parquet").write_text(key)
    cell.end(DONE)
"""


def command(root: Path) -> list[str]:
    """The arguments of Python that run a cell below a folder, without its key."""
    return ["-c", PROGRAM, str(root)]


def fake_cell(root: Path, method: str, seed: int = 0) -> Cell:
    return Cell("arc", method, seed, root / method / str(seed))


def started(root: Path) -> list[dict[str, str]]:
    """The environments of all processes that were begun, with their ids and keys."""
    file = root / "started"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def wait_for_the_end(pid: int) -> None:
    """A process that is not ours to wait for; a zombie has ended."""
    while Path(f"/proc/{pid}").exists() and "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2][:3]:
        os.kill(pid, 0)
        time.sleep(0.05)
