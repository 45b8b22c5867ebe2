"""Files that are whole or absent, written beside their place and renamed into it; and records that show a damage."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import socket
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bayeslora.errors import UsageError

RUN_FILE = "run.json"  # what a run folder says of itself
PREDICTION_FILE = "predictions.parquet"  # what a run predicted, in the folder of a test
_CHECKSUM = "sha256"
# What a process that is killed leaves: the process has its machine's name, but in files of before.
_LEFT = re.compile(r"\.(?P<name>.+)\.(?P<process>\d+(@(?P<host>.+))?)\.(?P<kind>tmp|old)")


@contextmanager
def replacing(path: Path | str) -> Iterator[Path]:
    """A temporary path in the same folder, which takes the name ``path`` when the block ends without an error."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _beside(path, "tmp")
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def replacing_folder(path: Path | str) -> Iterator[Path]:
    """The same for a folder: its new content is complete before the old one is removed."""
    path = Path(path)
    temporary, old = _beside(path, "tmp"), _beside(path, "old")
    temporary.mkdir(parents=True)
    try:
        yield temporary
        if path.exists():
            os.replace(path, old)
        os.replace(temporary, path)
    finally:
        if path.exists() or not old.exists():  # else one of the two is wanted, see ``clear_leftovers``
            shutil.rmtree(temporary, ignore_errors=True)
            shutil.rmtree(old, ignore_errors=True)


def clear_leftovers(root: Path, others: Collection[str]) -> None:
    """Remove what killed processes have left half written below a folder; finish what was on its way to its place.

    Args:
        root: A folder in which nobody else writes: the caller holds its lock.
        others: Names of files or folders by which a folder below is somebody else's, and stays as it is.
    """
    for folder, folders, files in os.walk(root):
        found = {name: left for name in (*folders, *files) if (left := _LEFT.fullmatch(name))}
        _settle(Path(folder), found)
        folders[:] = [name for name in folders if name not in found and not _is_others(Path(folder, name), others)]


def clear_leftovers_of(path: Path) -> None:
    """The same for what was to become one file or folder; what processes of other machines have left there stays.

    Args:
        path: What no other process of this machine is writing, as the caller has made sure.
    """
    beside = {entry.name: _LEFT.fullmatch(entry.name) for entry in path.parent.iterdir()}
    own = {name: left for name, left in beside.items() if left and left["name"] == path.name}
    _settle(path.parent, {n: left for n, left in own.items() if left["host"] in (None, socket.gethostname())})


def _settle(folder: Path, found: Mapping[str, re.Match[str]]) -> None:
    """Remove what was left, by its name in the folder; finish what was between two renamings of a folder."""
    for name, left in sorted(found.items()):  # of one process, `old` comes before `tmp`
        target, whole = folder / left["name"], folder / f".{left['name']}.{left['process']}.tmp"
        if left["kind"] == "old" and not target.exists() and whole.name in found:
            os.replace(whole, target)  # killed between two renamings, see ``replacing_folder``
        _remove(folder / name)


def write_json(path: Path | str, value: Any) -> None:
    """Write JSON, indented, whole or not at all.

    Args:
        path: The file to write.
        value: What is written; plain JSON values.
    """
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, allow_nan=True) + "\n")


def write_record(path: Path | str, value: dict[str, Any]) -> None:
    """Write a JSON object with a checksum of its own content, whole or not at all.

    Args:
        path: The file to write.
        value: What is written; plain JSON values.
    """
    write_json(path, with_checksum(value))


def read_record(path: Path | str, remedy: str) -> dict[str, Any]:
    """A JSON object that :func:`write_record` wrote; one without a checksum, of an earlier version, is taken as it is.

    Args:
        path: The file.
        remedy: What to do about a damage, for the error's message.

    Raises:
        UsageError: it is no JSON object, or not what was written.
    """
    return checked(read_object(path, remedy), path, remedy)


def with_checksum(value: dict[str, Any]) -> dict[str, Any]:
    """A JSON object with a checksum of its own content; :func:`checked` takes it off."""
    return {**value, _CHECKSUM: _checksum(value)}


def checked(record: dict[str, Any], path: Path | str, remedy: str) -> dict[str, Any]:
    """What :func:`with_checksum` was given; an object without a checksum, of an earlier version, as it is.

    Args:
        record: The object.
        path: The file it was read from.
        remedy: What to do about a damage, for the error's message.

    Raises:
        UsageError: it is not what was written.
    """
    held = {key: value for key, value in record.items() if key != _CHECKSUM}
    if _CHECKSUM in record and record[_CHECKSUM] != _checksum(held):
        raise UsageError(f"{path} is damaged (it is not what was written there); {remedy}")
    return held


def read_object(path: Path | str, remedy: str) -> dict[str, Any]:
    """The JSON object of a file that anybody may have written.

    Args:
        path: The file.
        remedy: What to do about a damage, for the error's message.

    Raises:
        UsageError: it is none.
    """
    try:
        text = Path(path).read_text()
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is damaged ({error}); {remedy}") from error
    return parse_object(text, path, remedy)


def parse_object(text: str | bytes, path: Path | str, remedy: str) -> dict[str, Any]:
    """A JSON object from its text.

    Args:
        text: The text.
        path: The file it was read from.
        remedy: What to do about a damage, for the error's message.

    Raises:
        UsageError: it is none.
    """
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:  # no JSON, too deep, or a number of too many digits
        raise UsageError(f"{path} is damaged ({error}); {remedy}") from error
    if not isinstance(found, dict):
        raise UsageError(f"{path} is damaged (no JSON object); {remedy}")
    return found


def run_record(root: Path) -> dict[str, Any]:
    """What ``run.json`` of a run folder says; empty where there is none.

    Raises:
        UsageError: it is damaged.
    """
    file = root / RUN_FILE
    return read_record(file, "move it away, results do not depend on it") if file.is_file() else {}


def file_checksum(path: Path) -> str:
    """The sha256 of a file's content, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _beside(path: Path, kind: str) -> Path:
    """The place beside a path that is this process's alone, see ``_LEFT``."""
    return path.with_name(f".{path.name}.{os.getpid()}@{socket.gethostname()}.{kind}")


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _is_others(folder: Path, marks: Collection[str]) -> bool:
    return folder.name in marks or any((folder / mark).is_file() for mark in marks)


def _checksum(value: dict[str, Any]) -> str:
    plain = json.loads(json.dumps(value))  # as it will be read back
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()
