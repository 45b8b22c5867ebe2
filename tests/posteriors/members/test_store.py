"""The member store: whole or absent after a kill at any point, and never two owners of a member."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from bayeslora.errors import RunError, UsageError
from bayeslora.posteriors.members.leases import Leases
from bayeslora.posteriors.members.store import DAMAGED, DONE, FAILED, MemberStore
from bayeslora.posteriors.point import Point
from bayeslora.posteriors.state import load_posterior

MARK = 4  # which renaming of a member is that of its mark, after its posterior and its record
CONFIG = {"peft_type": "LORA", "r": 2}
WRITER = """
import sys, torch
from bayeslora.posteriors.members.store import MemberStore
from bayeslora.posteriors.point import Point
store = MemberStore(sys.argv[1])
store.identify({"seed": 0})
store.claim([3])
print("go", flush=True)
version = 0
while True:
    version += 1
    store.write(3, Point({"x.lora_A.weight": torch.full((2, 300), float(version))}), {"r": 2}, "base", {"v": version})
"""


def point(value: float) -> Point:
    return Point({"x.lora_A.weight": torch.full((2, 3), value)})


def written(folder: Path, *members: int) -> MemberStore:
    store = MemberStore(folder)
    store.identify({"model.lora.r": 2, "seed": 1})
    store.claim(members)
    for member in members:
        store.write(member, point(member), CONFIG, "base", {"step": 4})
    store.leases.release()
    return store


def test_members_come_back_by_their_ids(tmp_path: Path) -> None:
    store = written(tmp_path, 0, 7)
    store.claim([2])
    store.fail(2, {"ended": "its loss is not finite"})
    assert store.members(DONE) == (0, 7)
    assert store.members(FAILED) == (2,)
    assert {m: float(p.mean()["x.lora_A.weight"][0, 0]) for m, p in store.load("base").items()} == {0: 0.0, 7: 7.0}
    with pytest.raises(UsageError, match="another base"):
        store.load("other")
    store.assemble(tmp_path / "posterior")
    assert len(load_posterior(tmp_path / "posterior").components) == 2


@pytest.mark.parametrize("damage", ["change", "remove", "mark"])
def test_a_damaged_member_is_refused_by_its_id(tmp_path: Path, damage: str) -> None:
    store = written(tmp_path, 0, 1)
    file = store.path(1) / "adapter_model.safetensors"
    if damage == "change":
        file.write_bytes(file.read_bytes()[:-1] + b"\7")
    elif damage == "remove":
        file.unlink()
    else:
        (store.path(1) / "DONE").write_bytes(b"\xff{")
    assert store.members(DONE) == (0,)
    assert store.members(DAMAGED) == (1,)
    with pytest.raises(UsageError, match=r"members 1 of .* are damaged .* `bayeslora ensemble`"):
        store.load()
    store.claim([1])
    store.write(1, point(1.0), CONFIG, "base", {})
    assert list(store.load()) == [0, 1]


def test_a_member_that_is_half_written_is_not_done(tmp_path: Path) -> None:
    store = written(tmp_path, 0, 1)
    (store.path(1) / "DONE").unlink()
    assert store.members(DONE) == (0,)
    assert list(store.load()) == [0]


def test_the_manifest_follows_from_the_members(tmp_path: Path) -> None:
    store = written(tmp_path, 0, 4)
    stored = json.loads((tmp_path / "manifest.json").read_text())
    assert stored == store.manifest()
    assert stored["members"] == {"000": "done", "004": "done"}
    (tmp_path / "manifest.json").unlink()
    assert MemberStore(tmp_path).manifest() == stored


def test_another_ensemble_is_refused_by_what_differs(tmp_path: Path) -> None:
    store = written(tmp_path, 0)
    store.identify({"seed": 1, "model.lora.r": 2})
    with pytest.raises(UsageError, match=r"model.lora.r \(there 2, here 4\).*another run folder") as error:
        store.identify({"seed": 1, "model.lora.r": 4})
    assert "seed" not in str(error.value)
    with pytest.raises(UsageError, match=r"model.lora.r"):  # a run that trains other members is not a prolonged one
        store.identify({"seed": 1, "model.lora.r": 4}, [1, 2])
    store.identify({"seed": 1, "model.lora.r": 4}, [0])
    assert store.identity() == {"seed": 1, "model.lora.r": 4}


@pytest.mark.parametrize("moment", range(3))
def test_killed_while_writing_a_store_can_be_read(tmp_path: Path, moment: int) -> None:
    """After SIGKILL at any point, a member is whole, of one version, or not done; its lease is free at once."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
    command = [sys.executable, "-c", WRITER, str(tmp_path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, env=environment)
    assert process.stdout is not None
    process.stdout.readline()
    time.sleep(0.05 + 0.0137 * moment)
    process.send_signal(signal.SIGKILL)
    process.wait()
    store = MemberStore(tmp_path)
    for member, posterior in (store.load() if store.members(DONE) else {}).items():
        value = posterior.mean()["x.lora_A.weight"]
        assert (value == json.loads((store.path(member) / "member.json").read_text())["v"]).all()
    store.claim([3])
    store.write(3, point(1.0), CONFIG, "base", {})
    assert store.members(DONE) == (3,)
    assert store.identity() == {"seed": 0}


@pytest.mark.parametrize("step", range(8))
def test_cut_between_writing_and_renaming(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Wherever the n-th renaming does not happen, the rest of the store is as it was and the member can be redone."""
    store = written(tmp_path, 0, 3)
    store.claim([3])
    calls = []

    def replace(source: str, target: str) -> None:
        calls.append(target)
        if len(calls) > step:
            raise KeyboardInterrupt
        rename(source, target)

    rename = os.replace
    monkeypatch.setattr(os, "replace", replace)
    try:
        store.write(3, point(9.0), CONFIG, "base", {})
    except KeyboardInterrupt:
        assert len(calls) == step + 1
    monkeypatch.undo()
    found = MemberStore(tmp_path).load()
    assert float(found[0].mean()["x.lora_A.weight"][0, 0]) == 0.0
    if 3 in found:
        assert float(found[3].mean()["x.lora_A.weight"][0, 0]) == 9.0
    assert (3 in found) == (step > MARK)
    store.write(3, point(9.0), CONFIG, "base", {})
    assert MemberStore(tmp_path).members(DONE) == (0, 3)


def contender(folder: str, start, found, done) -> None:  # type: ignore[no-untyped-def]
    """Claims every member it can, in an order of its own."""
    leases = Leases(Path(folder), seconds=60)
    start.wait()
    own = [
        member for member in sorted(range(20), key=lambda m: (m * (os.getpid() % 7 + 1)) % 20) if leases.claim([member])
    ]
    found.put((os.getpid(), own))
    done.wait()  # alive, so that its leases hold, until all have tried


def test_no_two_workers_own_a_member(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    start, found, done = context.Event(), context.Queue(), context.Event()
    workers = [context.Process(target=contender, args=(str(tmp_path), start, found, done)) for _ in range(3)]
    for worker in workers:
        worker.start()
    start.set()
    claims = [found.get()[1] for _ in workers]
    done.set()
    for worker in workers:
        worker.join()
    assert sorted(member for own in claims for member in own) == list(range(20))


def test_leases_run_out_are_renewed_and_found_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import bayeslora.posteriors.members.leases as module

    now = [1000.0]  # a clock that this test winds itself
    monkeypatch.setattr(module.time, "time", lambda: now[0])
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    ours = Leases(tmp_path, seconds=20)
    assert ours.claim([0, 1])
    us = module._OWNER
    monkeypatch.setattr(module, "_OWNER", "another")  # the same machine and process: not dead
    theirs = Leases(tmp_path, seconds=60)
    assert not theirs.claim([1, 2])
    assert theirs.holder(2) is None
    assert theirs.holder(1) is not None
    monkeypatch.setattr(module, "_OWNER", us)
    now[0] += 10
    ours.renew()
    now[0] += 15
    monkeypatch.setattr(module, "_OWNER", "another")
    assert not theirs.claim([1])  # renewed, or it would have run out
    now[0] += 10
    assert theirs.claim([1])
    monkeypatch.setattr(module, "_OWNER", us)
    with pytest.raises(RunError, match="lease on member 1"):
        ours.check()
    ours.release()
    assert theirs.folder.joinpath("001.json").exists()
    store = MemberStore(tmp_path / "store")
    store.claim([0])
    monkeypatch.setattr(module, "_OWNER", "another")
    with pytest.raises(UsageError, match=r"other workers.*0"):
        MemberStore(tmp_path / "store").claim([0])
