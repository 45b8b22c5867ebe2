"""What a user meets when the disk is full, a folder may only be read, or a file is not what it should be: one line."""

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from bayeslora.cli import main
from tests.helpers.command_line import arguments, refused

TINY = [
    "--trainer.max_steps=2",
    "--trainer.limit_val_batches=1",
    "--trainer.num_sanity_val_steps=0",
    "--model.lora.r=2",
]


@pytest.fixture(scope="module")
def tested(data: Path) -> Path:
    """A run that was tested, which tests leave as it is."""
    root = data.parent / "tested"
    assert main(arguments("fit", root, data, *TINY)) == 0
    assert main(arguments("test", root, data, *TINY)) == 0
    return root


@pytest.fixture
def run(tested: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tested, tmp_path / "run"))


@contextmanager
def _mounted(folder: Path, *options: str) -> Iterator[Path]:
    """A small file system in memory, of which root alone can make one."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", ",".join(options), "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("needs root, and a kernel that lets it mount a tmpfs")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


# --- disks -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kilobytes", [4, 200])
def test_a_full_disk_is_named_and_what_was_written_before_is_whole(
    kilobytes: int, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    with _mounted(tmp_path / "disk", "size=768k") as disk:
        (disk / "others").write_bytes(b"x" * (768 - kilobytes) * 1024)
        refused_in_any_case(capsys, arguments("fit", disk / "run", data, *TINY), "disk is full")
        (disk / "others").unlink()
        on = [f"--ckpt_path={saved.stem}" for saved in (disk / "run").glob("checkpoints/*.ckpt")]
        assert main(arguments("fit", disk / "run", data, *TINY, *on[-1:])) == 0


def test_a_full_disk_while_questions_are_answered(run: Path, data: Path, tmp_path: Path, capsys) -> None:
    with _mounted(tmp_path / "disk", "size=64k") as disk:
        (disk / "others").write_bytes(b"x" * 60 * 1024)
        ask = ["predict", "--run", str(run), "--questions", str(data / "test.jsonl"), "--out", str(disk / "a.jsonl")]
        refused_in_any_case(capsys, ask, "No space left on device", str(disk / "a.jsonl"))
        (disk / "others").unlink()
        assert main(ask) == 0
        assert len((disk / "a.jsonl").read_text().splitlines()) == 40


def test_a_run_folder_that_may_only_be_read(run: Path, data: Path, tmp_path: Path, capsys) -> None:
    """Commands that write say so; those that only read work."""
    with _mounted(tmp_path / "disk") as disk:
        shutil.copytree(run, disk / "run")
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        for stage in ("fit", "test"):
            again = arguments(stage, disk / "run", data, *TINY, "--overwrite")
            refused(capsys, again, "cannot be written to", "Read-only file system")
        assert main(["compare", str(disk / "run"), "--out", str(tmp_path / "compared")]) == 0
        ask = ["predict", "--run", str(disk / "run"), "--questions", str(data / "test.jsonl")]
        assert main([*ask, "--out", str(tmp_path / "answers.jsonl")]) == 0
        refused(capsys, [*ask, "--out", str(disk / "answers.jsonl")], "answers.jsonl", "Read-only file system")


# --- files that are not what they should be --------------------------------------------------------------------------


def test_a_folder_below_a_file(run: Path, data: Path, tmp_path: Path, capsys) -> None:
    (tmp_path / "file").write_text("")
    for stage in ("fit", "test"):
        refused(capsys, arguments(stage, tmp_path / "file" / "run", data, *TINY), "file")
    refused(capsys, ["compare", str(run), "--out", str(tmp_path / "file" / "out")], "file")
    ask = ["predict", "--run", str(run), "--questions", str(data / "test.jsonl")]
    refused(capsys, [*ask, "--out", str(tmp_path / "file" / "answers.jsonl")], "file")


ARTEFACTS = ["checkpoints/last.ckpt", "run.json", "posterior/temperature.json", "serving/serving.json"]


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        *(("loop", name) for name in [*ARTEFACTS, "test/predictions.parquet"]),
        *(("folder", name) for name in ARTEFACTS),
        *(("dangling", name) for name in ARTEFACTS[:2]),
    ],
)
def test_a_link_or_a_folder_in_the_place_of_a_file(
    kind: str, name: str, run: Path, data: Path, tmp_path: Path, capsys
) -> None:
    place = run / name
    place.unlink(missing_ok=True)
    if kind == "folder":
        place.mkdir()
    else:
        place.symlink_to(place.name if kind == "loop" else tmp_path / "nowhere")
    readers = {
        "serving/serving.json": ["predict", "--run", str(run), "--questions", str(data / "test.jsonl"), "--out", "-"],
        "test/predictions.parquet": ["compare", str(run), "--out", str(tmp_path / "out")],
    }
    args = readers.get(name)
    if args is not None:
        refused_in_any_case(capsys, args, str(run))
        return
    temperature = ["--trainer.callbacks+=bayeslora.callbacks.Temperature", "--overwrite"]
    capsys.readouterr()
    status = main(arguments("test", run, data, *TINY, *temperature))
    said = capsys.readouterr().err
    lines = [line for line in said.splitlines() if line.startswith("bayeslora: error:")]
    assert "Traceback" not in said
    assert (status == 0 and not lines) or (status in (1, 2) and len(lines) == 1 and place.name in lines[0]), said
    assert not (tmp_path / "nowhere").exists()  # nothing is written through a link


def test_a_label_of_a_billion_is_refused_by_its_line(tmp_path: Path, capsys) -> None:
    for name, row in (
        ("options", {"question": "q?", "options": ["a", "b"]}),
        ("sentence", {"sentence": "a text"}),
        ("answer", {"question": "q?", "choices": ["a", "b"]}),
    ):
        folder = tmp_path / name
        folder.mkdir()
        key = "answer" if name == "answer" else "label"
        lines = [{**row, "id": str(i), key: 10**9 if i == 7 else i % 2} for i in range(30)]
        for split in ("train", "test"):
            (folder / f"{split}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        refused(capsys, arguments("fit", tmp_path / f"{name}-run", folder, *TINY), "line 8", str(10**9))


def refused_in_any_case(capsys: pytest.CaptureFixture, args: list[str], *parts: str) -> None:
    """The command fails with one line, whatever its status, that holds every part."""
    capsys.readouterr()
    assert main(args) in (1, 2)
    said = capsys.readouterr().err
    lines = [line for line in said.splitlines() if line.startswith("bayeslora: error:")]
    assert len(lines) == 1, said
    assert "Traceback" not in said
    for part in parts:
        assert part in lines[0], lines[0]
