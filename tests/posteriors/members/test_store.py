"""The member store: whole or absent after a kill at any point, and never two owners of a member."""

import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from bayeslora.errors import UsageError
from bayeslora.files import file_checksum, read_record
from bayeslora.posteriors.members.locks import MemberLocks
from bayeslora.posteriors.members.store import DAMAGED, DONE, FAILED, MemberStore
from bayeslora.posteriors.point import Point
from bayeslora.posteriors.state import load_posterior

PUBLISHED = 4  # which renaming is that of a member's folder, after all that is in it
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
    store.locks.release()
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
    stored = read_record(tmp_path / "manifest.json", "")
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
    """After SIGKILL at any point, a member is whole, of one version, or not done; it is free at once, rubbish goes."""
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
    assert [path.name for path in tmp_path.glob(".*")] == []
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
    if step == PUBLISHED:  # between two renamings: the next claim finishes it
        assert list(found) == [0]
    store.claim([3])
    assert float(store.load()[3].mean()["x.lora_A.weight"][0, 0]) == (3.0 if step < PUBLISHED else 9.0)
    store.write(3, point(9.0), CONFIG, "base", {})
    assert MemberStore(tmp_path).members(DONE) == (0, 3)


def contender(folder: str, ahead: float, start, found, done) -> None:  # type: ignore[no-untyped-def]
    """Claims every member it can, in an order of its own, by a clock of its own."""
    clock = time.time
    time.time = lambda: clock() + ahead  # type: ignore[method-assign]
    locks = MemberLocks(Path(folder))
    start.wait()
    order = sorted(range(20), key=lambda m: (m * (os.getpid() % 7 + 1)) % 20)
    found.put([member for member in order if locks.claim([member])])
    done.wait()  # alive, so that its locks hold, until all have tried


def test_a_member_that_was_put_aside_by_a_killed_process_comes_back(tmp_path: Path) -> None:
    store = written(tmp_path, 3)
    name = f".003.12345@{socket.gethostname()}"
    os.rename(store.path(3), tmp_path / f"{name}.tmp")  # whole, and about to take the place of the old one
    (tmp_path / f"{name}.old").mkdir()
    (tmp_path / ".003.12345@elsewhere.tmp").mkdir()  # another machine's, which may be alive
    assert store.members(DONE) == ()
    store.claim([3])
    assert store.members(DONE) == (3,)
    assert [path.name for path in tmp_path.glob(".*")] == [".003.12345@elsewhere.tmp"]


def test_no_two_workers_own_a_member(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    start, found, done = context.Event(), context.Queue(), context.Event()
    ahead = (0.0, 3600.0, -3600.0)
    workers = [context.Process(target=contender, args=(str(tmp_path), a, start, found, done)) for a in ahead]
    for worker in workers:
        worker.start()
    start.set()
    claims = [found.get() for _ in workers]
    done.set()
    for worker in workers:
        worker.join()
    assert sorted(member for own in claims for member in own) == list(range(20))


def test_a_stopped_worker_keeps_its_member_and_a_dead_ones_is_free_at_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    start, found, done = context.Event(), context.Queue(), context.Event()
    store = MemberStore(tmp_path)
    worker = context.Process(target=contender, args=(str(tmp_path / "leases"), 0.0, start, found, done))
    worker.start()
    start.set()
    assert len(found.get()) == 20
    assert worker.pid is not None
    os.kill(worker.pid, signal.SIGSTOP)
    ours = MemberLocks(tmp_path / "leases")
    assert not ours.claim([3])
    assert str(ours.holder(3)).endswith(f":{worker.pid}")
    assert ours.claim([20])
    assert not ours.claim([21, 4])
    assert ours.holder(21) is None  # all or none
    with pytest.raises(UsageError, match=rf"other workers.*3: '.*:{worker.pid}'"):
        store.claim([3, 22])
    worker.kill()
    worker.join()
    assert ours.claim([3])
    assert ours.holder(3) is None
    store.claim([3])  # a command holds what its callback claims


def test_without_locks_the_first_result_stands(tmp_path: Path) -> None:
    """Two machines whose locks do not reach each other train one member: nothing is lost, nothing mixed."""
    first, second = MemberStore(tmp_path), MemberStore(tmp_path)
    first.identify({"seed": 0})
    for store in (first, second):
        store.claim([0])
    first.write(0, point(1.0), CONFIG, "base", {})
    with pytest.warns(UserWarning, match="another process has finished member 0"):
        second.write(0, point(2.0), CONFIG, "base", {})
    with pytest.warns(UserWarning, match="another process has finished member 0"):
        second.fail(0, {"ended": "its loss is not finite"})
    assert float(second.load()[0].mean()["x.lora_A.weight"][0, 0]) == 1.0
    third = MemberStore(tmp_path)
    third.claim([0])
    third.write(0, point(3.0), CONFIG, "base", {})  # as a run that is prolonged
    assert float(third.load()[0].mean()["x.lora_A.weight"][0, 0]) == 3.0


@pytest.mark.parametrize(("name", "remedy"), [("manifest.json", "remove it"), ("000/member.json", "remove its folder")])
@pytest.mark.parametrize("damage", [lambda text: text.replace("0", "1", 1), lambda text: text[:20], lambda _: "[1]"])
def test_damaged_records_are_refused_with_what_to_do(tmp_path: Path, name: str, remedy: str, damage) -> None:  # type: ignore[no-untyped-def]
    store = MemberStore(tmp_path)
    store.identify({"seed": 0})
    store.claim([0, 1])
    store.fail(0, {"ended": "its loss is not finite", "step": 0})
    store.write(1, point(1.0), CONFIG, "base", {})
    file = tmp_path / name
    file.write_text(damage(file.read_text()))
    with pytest.raises(UsageError, match=rf"{file.name} is damaged .*; {remedy}") as error:
        store.identity() if name == "manifest.json" else store.record(0)
    assert "\n" not in str(error.value)
    if name != "manifest.json":
        assert store.members(DAMAGED) == (0,)
        assert list(store.load(available=True)) == [1]
    file.unlink()
    assert store.identity() == {"seed": 0}
    assert store.members(DONE) == (1,)


def test_records_of_before_are_read(tmp_path: Path) -> None:
    store = written(tmp_path, 0)
    for file in (tmp_path / "manifest.json", store.path(0) / "member.json"):
        file.write_text(json.dumps(read_record(file, "")))  # without a checksum
    mark = json.loads((store.path(0) / "DONE").read_text())
    mark["member.json"] = file_checksum(store.path(0) / "member.json")
    (store.path(0) / "DONE").write_text(json.dumps(mark))
    assert MemberStore(tmp_path).identity() == {"model.lora.r": 2, "seed": 1}
    (tmp_path / "manifest.json").unlink()
    assert MemberStore(tmp_path).identity() == {"model.lora.r": 2, "seed": 1}
    assert list(MemberStore(tmp_path).load("base")) == [0]
