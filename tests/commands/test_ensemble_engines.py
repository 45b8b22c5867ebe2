"""``bayeslora ensemble`` on an engine: members of processes of their own are those of one process, to the bit."""

from pathlib import Path

import pytest
import torch

from bayeslora.cli import main
from bayeslora.commands.member_jobs import MemberJob
from bayeslora.posteriors.members.store import MemberStore
from bayeslora.posteriors.state import load_posterior
from tests.helpers.command_line import refused
from tests.helpers.ensembles import arguments, difference, weights
from tests.helpers.ray_nodes import two_nodes
from tests.helpers.slurm import slurm_in
from tools.layout import ROOT


@pytest.fixture(scope="module")
def alone(data: Path) -> Path:
    """Two members of one process."""
    before, root = torch.get_num_threads(), data.parent / "alone"
    assert main(arguments("ensemble", root, data, "--members=2", "--mode=sequential", "--threads=1")) == 0
    torch.set_num_threads(before)
    return root


def assert_same(root: Path, alone: Path) -> None:
    ours, theirs = weights(root), weights(alone)
    assert sorted(ours) == [0, 1]
    assert all(difference(ours[member], theirs[member]) == 0 for member in ours)
    mixture, expected = (load_posterior(folder / "posterior").mean() for folder in (root, alone))
    assert difference(mixture, expected) == 0


@pytest.mark.slow
def test_two_processes_at_a_time(
    alone: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    command = arguments("ensemble", tmp_path, data, "--members=2", "--jobs=2")
    assert main(command) == 0
    said = capsys.readouterr().out
    assert "member 0: running\nmember 1: running" in said
    assert "members done: [0, 1]; failed: []" in said
    assert_same(tmp_path, alone)
    assert (tmp_path / "members" / "logs" / "001" / "cell.log").stat().st_size
    assert main(command) == 0  # which finds nothing to do
    assert "running" not in capsys.readouterr().out


@pytest.mark.slow
def test_two_nodes_of_a_ray_cluster(alone: Path, data: Path, tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="needs Ray: pip install 'bayeslora[ray]'")
    with two_nodes() as cluster:
        engine = ["--engine=ray", f"--address={cluster.address}", "--gpu-share=0"]
        assert main(arguments("ensemble", tmp_path, data, "--members=2", *engine)) == 0
    assert_same(tmp_path, alone)


@pytest.mark.slow
def test_a_job_array(
    alone: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """The run folder is relative: what SLURM runs works where the command was given."""
    jobs = slurm_in(tmp_path, monkeypatch)
    monkeypatch.chdir(tmp_path)
    command = arguments("ensemble", Path("runs/one"), data, "--members=2", "--engine=slurm", "--submit")
    assert main(command) == 0
    assert "2 runs are queued, as jobs 100" in capsys.readouterr().out
    assert_same(tmp_path / "runs" / "one", alone)
    assert main(command) == 0  # which finds nothing to do
    assert len(jobs.read_text().splitlines()) == 1


def test_a_member_that_fails_is_named_with_its_log(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    assert main(arguments("ensemble", tmp_path, tmp_path / "none.jsonl", "--members=1", "--jobs=1")) == 1
    said = capsys.readouterr()
    log = tmp_path / "members" / "logs" / "000" / "cell.log"
    assert f"failed: member 0: its process ended with status 2; see {log}" in said.out
    assert "none.jsonl" in log.read_text()
    assert "no member of" in said.err


def test_a_member_that_has_failed_says_why(tmp_path: Path) -> None:
    store = MemberStore(tmp_path / "members")
    store.claim([3])
    store.identify({"seed": 0})
    store.fail(3, {"ended": "its loss is nan"})
    job = MemberJob(3, store)
    assert (job.key, job.done(), job.attempts()) == ("3", False, (1, "its loss is nan"))
    assert MemberJob(4, store).attempts() == (0, None)


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        (["--engine=local", "--member=1"], ["--engine local", "leave --member and --mode away"]),
        (["--jobs=2", "--mode=joint"], ["--engine local", "leave --member and --mode away"]),
        (["--jobs=0"], ["--jobs is 0; allowed: 1 or more"]),
        (["--threads=0"], ["--threads is 0; allowed: 1 or more"]),
        (["--submit"], ["--submit belongs to --engine slurm"]),
        (["--engine=cloud"], ["cloud", "local", "ray", "slurm"]),
        (["--jobs=2", "--members=x"], ["members is 'x'"]),
    ],
)
def test_bad_input(
    options: list[str], parts: list[str], data: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    refused(capsys, arguments("ensemble", tmp_path, data, *options), *parts)


def test_a_configuration_without_members_starts_no_process(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    refused(
        capsys, ["ensemble", "-c", "quickstart", "--jobs=2", f"--trainer.default_root_dir={tmp_path}"], "has no members"
    )
