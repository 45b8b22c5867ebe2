"""The engine of a Ray cluster: two nodes that ``ray.cluster_utils`` plays on this machine."""

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from bayeslora.errors import UsageError
from bayeslora.grid.cells import Cell
from bayeslora.grid.environment import DEVICES
from bayeslora.grid.ray_cluster import RayEngine
from bayeslora.grid.schedule import run_cells
from tests.helpers.fake_cells import command, fake_cell, started, wait_for_the_end
from tests.helpers.ray_nodes import two_nodes

pytest.importorskip("ray", reason="needs Ray: pip install 'bayeslora[ray]'")


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    with two_nodes() as made:
        yield made


def _run(engine: RayEngine, cells: list[Cell], needs: dict[Cell, Cell] | None = None) -> tuple[dict[Cell, str], list]:
    told: list[tuple[str, str]] = []
    failures = run_cells(engine, cells, needs or {}, lambda cell, status: told.append((cell.method, status)))
    return failures, told


@pytest.mark.slow
def test_cells_run_in_their_order_and_one_that_fails_leaves_the_others_alone(
    cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # the nodes were started elsewhere
    names = ("killed", "exits", "wrong", "after_wrong", "good", "after_good")
    killed, exits, wrong, after_wrong, good, after_good = cells = [fake_cell(tmp_path, name) for name in names]
    engine = RayEngine(cluster.address, None, 2, 0, command(tmp_path))
    failures, told = _run(engine, cells, {after_wrong: wrong, after_good: good})
    assert set(failures) == {killed, exits, wrong, after_wrong}
    assert "ended by signal 9" in failures[killed]
    assert "ended with status 0" in failures[exits]  # Ray would run it again three times
    assert failures[wrong] == "it is wrong"
    assert {cell.attempts()[0] for cell in (killed, exits, wrong, good, after_good)} == {1}
    assert told.index(("good", "done")) < told.index(("after_good", "running"))
    for entry in started(tmp_path):
        assert (entry[DEVICES], entry["OMP_NUM_THREADS"]) == ("", "2")
        assert entry["directory"] == str(tmp_path)  # where relative paths begin, whatever node it is


@pytest.mark.slow
def test_a_worker_that_is_killed_costs_its_cell_one_attempt(cluster: Any, tmp_path: Path) -> None:
    cell = fake_cell(tmp_path, "endless_at_first")
    engine = RayEngine(cluster.address, 1, 1, 1, command(tmp_path))

    def kill() -> None:
        while not started(tmp_path):
            time.sleep(0.05)
        os.kill(int(started(tmp_path)[0]["parent"]), signal.SIGKILL)

    killer = Thread(target=kill, daemon=True)
    killer.start()
    failures, told = _run(engine, [cell])
    killer.join(60)
    assert not failures
    assert [status for _, status in told] == ["running", "lost; begun again", "running", "done"]
    assert cell.attempts() == (2, None)
    first, second = started(tmp_path)
    assert first[DEVICES] == second[DEVICES] == "0"
    wait_for_the_end(int(first["pid"]))


@pytest.mark.slow
def test_what_no_node_has_is_refused(cluster: Any, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"needs 64 CPUs and 0 of a GPU on one node; the cluster's have 2 CPUs and"):
        RayEngine(cluster.address, None, 64, 0, command(tmp_path))
    with pytest.raises(UsageError, match=r"needs 1 CPUs and 2 of a GPU"):
        RayEngine(cluster.address, None, 1, 2, command(tmp_path))


def test_a_cluster_that_does_not_answer_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"--address is '127.0.0.1:1', and Ray has not answered there"):
        RayEngine("127.0.0.1:1", None, 1, 0, command(tmp_path))
