"""``bayeslora ensemble``: whatever is missing is trained, and is what one joint run would have made."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from bayeslora.cli import main
from bayeslora.commands import ensemble, member_work
from bayeslora.lightning_modules.ensemble import LoRAEnsemble
from bayeslora.posteriors.members.locks import MemberLocks
from bayeslora.posteriors.members.store import DONE, MemberStore
from bayeslora.posteriors.state import load_posterior
from tests.helpers.command_line import ROOT, refused
from tests.helpers.ensembles import arguments, difference, weights


@pytest.fixture(scope="module")
def joint(data: Path) -> Path:
    """Five members of one fit."""
    root = data.parent / "joint"
    assert main(arguments("fit", root, data)) == 0
    return root


def assert_members_agree(root: Path, reference: Path, members: list[int], tolerance: float = 1e-4) -> None:
    ours, theirs = weights(root), weights(reference)
    assert sorted(ours) == members
    for member in members:
        assert difference(ours[member], theirs[member]) < tolerance
        others = [difference(ours[member], theirs[other]) for other in members if other != member]
        assert not others or min(others) > 10 * tolerance


def test_one_after_another_then_extended(
    joint: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert main(arguments("ensemble", tmp_path, data, "--members", "2", "--mode", "sequential")) == 0
    first = weights(tmp_path)
    assert main(arguments("ensemble", tmp_path, data, "--mode", "joint")) == 0
    assert_members_agree(tmp_path, joint, [0, 1, 2, 3, 4])
    assert all(difference(first[member], weights(tmp_path)[member]) == 0 for member in (0, 1))
    assert list((tmp_path / "members" / "begun").iterdir()) == []
    refused(capsys, arguments("ensemble", tmp_path, data, "--members", "6", "--model.l2_product=1"), "model.l2_product")
    assert main(arguments("test", tmp_path, data)) == 0
    assert "members" in capsys.readouterr().out
    metrics = [json.loads((root / "test" / "metrics.json").read_text()) for root in (tmp_path, evaluated(joint, data))]
    assert [m["n_members"] for m in metrics] == [5, 5]
    ours, theirs = (next(iter(m["datasets"].values())) for m in metrics)
    assert ours["nll"] == pytest.approx(theirs["nll"], abs=1e-4)


def evaluated(root: Path, data: Path) -> Path:
    assert main(arguments("test", root, data, "--overwrite")) == 0
    return root


def test_a_subset_predicts_and_a_damaged_member_is_made_again(joint: Path, data: Path, tmp_path: Path) -> None:
    assert main(arguments("ensemble", tmp_path, data, "--members", "1,3")) == 0
    (tmp_path / "members" / "003" / "DONE").unlink()
    evaluated(tmp_path, data)
    assert json.loads((tmp_path / "test" / "metrics.json").read_text())["n_members"] == 1
    assert main(arguments("ensemble", tmp_path, data, "--members", "1,3")) == 0
    assert_members_agree(tmp_path, joint, [1, 3])


def test_the_base_is_one_member(joint: Path, data: Path) -> None:
    """``--ckpt_path base`` answers with the bare base, once."""
    assert main(arguments("test", joint, data, "--overwrite", "--ckpt_path=base")) == 0
    metrics = json.loads((joint / "test" / "metrics.json").read_text())
    assert (metrics["method"], metrics["n_members"]) == ("base", 1)


def test_a_run_may_be_prolonged_in_its_own_folder(data: Path, tmp_path: Path) -> None:
    options = ["--model.members=2"]
    assert main(arguments("fit", tmp_path, data, *options)) == 0
    short = weights(tmp_path)
    assert main(arguments("fit", tmp_path, data, *options, "--trainer.max_epochs=2", "--ckpt_path=last")) == 0
    store = MemberStore(tmp_path / "members")
    assert store.members(DONE) == (0, 1)
    assert store.identity()["trainer.max_epochs"] == 2
    assert difference(short[0], weights(tmp_path)[0]) > 0


def test_memory_that_runs_out_makes_passes_smaller(
    joint: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    sizes = []
    whole = LoRAEnsemble.member_losses

    def short_of_memory(self, places, batches):  # type: ignore[no-untyped-def]
        sizes.append(len(places))
        if len(places) > 1:
            raise torch.OutOfMemoryError("no memory left")
        return whole(self, places, batches)

    monkeypatch.setattr(LoRAEnsemble, "member_losses", short_of_memory)
    assert main(arguments("ensemble", tmp_path / "joint", data, "--members", "3", "--mode", "joint")) == 1
    assert "out of memory" in capsys.readouterr().err
    sizes.clear()
    held: list[tuple[int, BaseException | None]] = []
    monkeypatch.setattr(ensemble, "give_back", lambda: held.append((len(sizes), sys.exception())))
    assert main(arguments("ensemble", tmp_path / "auto", data, "--members", "3")) == 0
    assert sizes[:3] == [3, 2, 1]
    assert held[:2] == [(1, None), (2, None)]  # after every attempt, when no exception holds its tensors any more
    assert set(sizes[3:]) == {1}
    assert_members_agree(tmp_path / "auto", joint, [0, 1, 2])


def test_a_member_that_fails_alone_leaves_the_rest(
    joint: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    whole = LoRAEnsemble.member_losses

    def broken(self, places, batches):  # type: ignore[no-untyped-def]
        return whole(self, places, batches) * (torch.nan if self.member_ids == (1,) else 1.0)

    monkeypatch.setattr(LoRAEnsemble, "member_losses", broken)
    assert main(arguments("ensemble", tmp_path, data, "--members", "3", "--mode", "sequential")) == 0
    assert "done: [0, 2]; failed: [1]" in capsys.readouterr().out
    store = MemberStore(tmp_path / "members")
    assert "not finite" in json.loads((store.path(1) / "member.json").read_text())["ended"]
    assert_members_agree(tmp_path, joint, [0, 2])
    assert len(load_posterior(tmp_path / "posterior").components) == 2


def test_a_run_of_another_kind_keeps_its_posterior(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    adapter = tmp_path / "posterior" / "adapter_model.safetensors"
    adapter.parent.mkdir()
    adapter.write_bytes(b"of one network")
    refused(capsys, arguments("ensemble", tmp_path, data), "holds a run that is no ensemble's")
    assert adapter.read_bytes() == b"of one network"
    assert not (tmp_path / "members").exists()


def test_one_member_of_a_job_array(
    joint: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    one = arguments("ensemble", tmp_path, data, "--member", "3")
    assert main(one) == 0
    assert_members_agree(tmp_path, joint, [3])
    before = (tmp_path / "members" / "003" / "DONE").stat().st_mtime_ns
    assert main(one) == 0  # it is there
    assert (tmp_path / "members" / "003" / "DONE").stat().st_mtime_ns == before
    refused(capsys, [*one, "--members=2"], "--member and --members are both given")
    refused(capsys, arguments("ensemble", tmp_path, data, "--member=-1"), "member is -1; allowed: an id of 0 or above")

    whole = LoRAEnsemble.member_losses
    monkeypatch.setattr(LoRAEnsemble, "member_losses", lambda *given: whole(*given) * torch.nan)
    assert main(arguments("ensemble", tmp_path, data, "--member", "1")) == 1
    assert "member 1 of" in (line := capsys.readouterr().err.splitlines()[-1])
    assert "not finite" in line
    assert main(arguments("ensemble", tmp_path, data, "--member", "1")) == 1  # it has failed, and is not tried again


def test_a_member_that_another_process_trains_is_waited_for(
    joint: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    shutil.copytree(joint / "members", tmp_path / "members")
    finished = (tmp_path / "members" / "002").rename(tmp_path / "aside")
    holders = ["other:7", "other:7", None]
    monkeypatch.setattr(MemberLocks, "holder", lambda *_: holders.pop(0) if holders else None)
    monkeypatch.setattr(member_work, "time", SimpleNamespace(sleep=lambda _: finished.rename(tmp_path / "members/002")))
    assert main(arguments("ensemble", tmp_path, data, "--member", "2")) == 0
    assert "waiting for other:7, which trains member 2" in capsys.readouterr().out
    assert not (tmp_path / "members" / "begun").exists()


def test_a_group_that_was_cut_between_two_of_its_members_is_not_trained_anew(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The members that were left out are those of the training that there was, bit for bit; the others stay."""
    write, options = MemberStore.write, ["--members=2", "--trainer.max_steps=2"]

    def cut(store: MemberStore, member: int, *given: object) -> None:
        if member == 1:
            raise RuntimeError("killed")
        write(store, member, *given)  # type: ignore[arg-type]

    for root in (tmp_path / "whole", tmp_path / "cut"):
        if root.name == "cut":
            monkeypatch.setattr(MemberStore, "write", cut)
            assert main(arguments("ensemble", root, data, *options)) == 1
            assert MemberStore(root / "members").members(DONE) == (0,)
            monkeypatch.undo()
        assert main(arguments("ensemble", root, data, *options)) == 0
    assert_members_agree(tmp_path / "cut", tmp_path / "whole", [0, 1], 1e-30)
    assert not list((tmp_path / "cut" / "members" / "begun").iterdir())


def test_a_damaged_member_is_an_error_or_named_in_the_table(
    joint: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    shutil.copytree(joint / "members", tmp_path / "members")
    file = tmp_path / "members" / "002" / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"\7")
    refused(capsys, arguments("test", tmp_path, data), "members 2 of", "are damaged", "--members available")
    assert main(arguments("test", tmp_path, data, "--members", "available")) == 0
    assert "ensemble without damaged 2, 4 members" in capsys.readouterr().out
    metrics = json.loads((tmp_path / "test" / "metrics.json").read_text())
    assert (metrics["method"], metrics["n_members"]) == ("ensemble without damaged 2", 4)
    (tmp_path / "members" / "manifest.json").write_text("{")
    refused(capsys, arguments("ensemble", tmp_path, data), "manifest.json is damaged", "remove it")


WORKER = """
import time
clock = time.time
time.time = lambda: clock() + {ahead}
from bayeslora.cli import console
console()
"""


def command(root: Path, data: Path, *options: str, ahead: float = 0.0) -> subprocess.Popen:
    """A worker whose clock is so many seconds ahead."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    line = [sys.executable, "-c", WORKER.format(ahead=ahead), *arguments("ensemble", root, data, *options)]
    return subprocess.Popen(line, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.slow
def test_two_processes_share_a_store(joint: Path, data: Path, tmp_path: Path) -> None:
    """Nothing is trained twice and nothing lost, though the clock of one is an hour ahead."""
    options = ["--members", "4", "--mode", "sequential"]
    workers = [command(tmp_path, data, *options, ahead=ahead) for ahead in (0.0, 3600.0)]
    ends = [worker.communicate() for worker in workers]
    assert MemberStore(tmp_path / "members").members(DONE) == (0, 1, 2, 3), ends
    assert [worker.returncode for worker in workers] == [0, 0], ends
    records = [json.loads((tmp_path / "members" / f"00{m}" / "member.json").read_text()) for m in range(4)]
    assert {record["process"] for record in records} == {worker.pid for worker in workers}
    assert sum(out.count("written to") for out, _ in ends) == 4, ends  # one line a fit
    assert_members_agree(tmp_path, joint, [0, 1, 2, 3])


@pytest.mark.slow
def test_killed_anywhere_and_continued(data: Path, tmp_path: Path) -> None:
    """Joint members that were cut by SIGKILL end bit for bit as they would have."""
    options = ["--members", "2", "--trainer.max_epochs=30", "--save_every_n_steps=4"]
    last = tmp_path / "killed" / "members" / "begun" / "000-001" / "checkpoints" / "last.ckpt"
    process = command(tmp_path / "killed", data, *options)
    while process.poll() is None and not last.exists():
        time.sleep(0.001)
    time.sleep(0.1)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert MemberStore(tmp_path / "killed" / "members").members(DONE) == ()
    for root in ("killed", "whole"):
        assert main(arguments("ensemble", tmp_path / root, data, *options)) == 0
    assert_members_agree(tmp_path / "killed", tmp_path / "whole", [0, 1], 1e-30)


def test_refusals(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    refused(capsys, arguments("ensemble", tmp_path, data, "--mode", "both"), "mode is 'both'", "joint")
    refused(capsys, arguments("ensemble", tmp_path, data, "--members", "many"), "members is 'many'")
    for given, said in {"0": "0", "-3": "-3", "0,-1": "[0, -1]", "1,1": "[1, 1]"}.items():
        refused(capsys, arguments("ensemble", tmp_path, data, "--members", given), f"members is {said}; allowed")
    refused(capsys, arguments("ensemble", tmp_path, data, "--model.members=0"), "members is 0; allowed")
    refused(capsys, arguments("ensemble", tmp_path, data, "--model=LoRAModule"), "has no members")
