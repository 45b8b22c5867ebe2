"""Job arrays: what SLURM is given, with a small script in the place of ``sbatch`` that runs an array at once."""

import subprocess
from pathlib import Path

import pytest

from bayeslora.errors import RunError, UsageError
from bayeslora.grid.slurm import submit, write_arrays
from tests.helpers.fake_cells import command, fake_cell, started
from tests.helpers.slurm import program, slurm_in


@pytest.fixture
def jobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The list of jobs that the stand-in for sbatch was given."""
    return slurm_in(tmp_path, monkeypatch)


def test_cells_that_use_a_training_come_after_the_trainings(jobs: Path, tmp_path: Path) -> None:
    folder = tmp_path / "slurm"
    wrong, after_wrong, good, after_good, alone = (
        fake_cell(tmp_path, name) for name in ("wrong", "after_wrong", "good", "after_good", "alone")
    )
    needs = {after_wrong: wrong, after_good: good, alone: fake_cell(tmp_path, "trained")}
    cells = [after_wrong, wrong, after_good, good, alone]
    script = write_arrays(folder, cells, needs, command(tmp_path), 3, 2, ["--partition=gpu", "--gres=gpu:1"])
    assert not jobs.exists()
    assert submit(script) == ["100", "101"]
    first, second = jobs.read_text().splitlines()
    assert "--dependency" not in first
    assert "--dependency=afterany:100" in second
    assert [entry["key"].split("/")[1] for entry in started(tmp_path)] == [
        *("wrong", "good", "alone"),  # of whose trainings one is done already
        *("after_wrong", "after_good"),  # whatever became of the trainings: a cell does what is left of them
    ]
    assert all(cell.done() for cell in cells if cell != wrong)
    text = (folder / "trainings-0.sbatch").read_text()
    for line in ("--array=0-2%2", "--cpus-per-task=3", "--partition=gpu", "--gres=gpu:1", "--signal=B:TERM@120"):
        assert f"#SBATCH {line}\n" in text
    assert {entry["CUDA_VISIBLE_DEVICES"] for entry in started(tmp_path)} == {"7"}
    assert {entry["directory"] for entry in started(tmp_path)} == {
        str(Path.cwd())
    }  # relative paths begin where they did


def test_what_is_queued_keeps_its_cells_and_is_not_queued_twice(jobs: Path, tmp_path: Path) -> None:
    folder = tmp_path / "slurm"
    submit(write_arrays(folder, [fake_cell(tmp_path, "good")], {}, command(tmp_path), 1))
    program(tmp_path / "bin", "squeue", '#!/bin/bash\necho "$@"\n')
    script = write_arrays(folder, [fake_cell(tmp_path, "other")], {}, command(tmp_path), 1)
    with pytest.raises(RunError, match="jobs 100 of this folder are still queued or running"):
        submit(script)
    assert len(jobs.read_text().splitlines()) == 1


def test_many_cells_are_several_arrays_that_bash_can_read(tmp_path: Path) -> None:
    folder = tmp_path / "a folder"
    cells = [fake_cell(tmp_path, "good", seed) for seed in range(2001)]
    script = write_arrays(folder, cells, {}, command(tmp_path), 1)
    assert [len((folder / f"trainings-{i}.sbatch").read_text().split("arc/good/")) - 1 for i in range(3)] == [
        *(1000, 1000, 1)
    ]
    assert script.read_text().count("sbatch --parsable") == 3
    for file in (script, *folder.glob("*.sbatch")):
        subprocess.run(["bash", "-n", str(file)], check=True)


def test_what_slurm_refuses_is_one_line(jobs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = write_arrays(tmp_path / "slurm", [fake_cell(tmp_path, "good")], {}, command(tmp_path), 1)
    program(tmp_path / "bin", "sbatch", "#!/bin/bash\necho 'invalid partition' >&2; exit 1\n")
    with pytest.raises(RunError, match=r"ended with status 1: invalid partition \(jobs submitted before: none\)"):
        submit(script)
    (tmp_path / "bin" / "sbatch").unlink()
    with pytest.raises(UsageError, match="there is no sbatch on this machine; run"):
        submit(script)
