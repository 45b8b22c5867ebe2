"""A command that is killed with SIGKILL goes on as if nothing had been, and what it had begun to write is cleared away.

The long form is ``python -m tests.faults.kill``; docs/reliability.md has its figures.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from filelock import FileLock

from bayeslora.callbacks.run_folder import refuse_second_fit
from bayeslora.commands.folder_lock import FILE, folder_locks, lock_folder
from bayeslora.errors import UsageError
from bayeslora.files import clear_leftovers, replacing_folder

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_a_fit_that_is_killed_ends_as_one_that_is_not() -> None:
    command = [
        sys.executable,
        "-m",
        "tests.faults.kill",
        "fit-swag",
        "--random",
        "2",
        "--operations",
        "1",
        "--signals",
        "1",
    ]
    own = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=own, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "4 of 4 equal; rubbish left by 0" in done.stdout


def test_what_a_killed_process_has_left_is_cleared_by_the_next_one(tmp_path: Path) -> None:
    for name in (".run.json.7.tmp", "checkpoints/.last.ckpt.7.tmp", ".posterior.7.tmp/mean", "test/.x.y.8.old/z"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("half")
    others = {"members/.003.7.tmp/a", "laplace_steps/last/.run.json.7.tmp", f"laplace_steps/last/{FILE}"}
    own = {"run.json", "checkpoints/last.ckpt", ".tmp", ".env.tmp"}
    for name in others | own:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("whole")
    with folder_locks():
        lock_folder(tmp_path)
    found = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert found == others | own | {FILE}


def test_nothing_is_cleared_where_another_process_works(tmp_path: Path) -> None:
    (tmp_path / ".run.json.7.tmp").write_text("half")
    lock = FileLock(tmp_path / FILE, fallback_to_soft=False)
    with lock, folder_locks(), pytest.raises(UsageError, match="another process"):
        lock_folder(tmp_path)
    assert (tmp_path / ".run.json.7.tmp").exists()


@pytest.mark.parametrize("renamings", range(3))
def test_a_folder_on_its_way_to_its_place_is_whole_after_a_kill(
    renamings: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cut off before each of the two renamings, and after them before the old content is removed."""
    (tmp_path / "posterior").mkdir()
    (tmp_path / "posterior" / "mean").write_text("old")
    rename, done = os.replace, []

    def replace(source: Path, target: Path) -> None:
        if len(done) == renamings:
            raise KeyboardInterrupt
        done.append(rename(source, target))

    monkeypatch.setattr("bayeslora.files.os.replace", replace)
    monkeypatch.setattr("bayeslora.files.shutil.rmtree", lambda *args, **options: None)
    try:
        with replacing_folder(tmp_path / "posterior") as folder:
            (folder / "mean").write_text("new")
    except KeyboardInterrupt:
        assert renamings < 2
    monkeypatch.undo()
    clear_leftovers(tmp_path, ())
    assert (tmp_path / "posterior" / "mean").read_text() == ("new" if renamings else "old")
    assert [path.name for path in tmp_path.iterdir()] == ["posterior"]


def test_a_fit_without_its_last_checkpoint_is_told_what_it_can_go_on_from(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    refuse_second_fit(tmp_path, resuming=False, overwrite=False)  # killed before it had written anything
    (tmp_path / "checkpoints" / "best.ckpt").write_text("")
    with pytest.raises(UsageError, match="--ckpt_path best"):
        refuse_second_fit(tmp_path, resuming=False, overwrite=False)
    (tmp_path / "checkpoints" / "last.ckpt").write_text("")
    with pytest.raises(UsageError, match="--ckpt_path last"):
        refuse_second_fit(tmp_path, resuming=False, overwrite=False)
