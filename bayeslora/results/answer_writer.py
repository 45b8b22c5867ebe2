"""Writes files of answers in a stream, so that what a killed process has written is kept and continued."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from filelock import FileLock, Timeout

from bayeslora.errors import RunError, UsageError
from bayeslora.files import replacing
from bayeslora.results.answer_file import CHUNK, Row, check_ending, json_rows

_PARQUET: dict[str, Any] = {"compression": "zstd", "write_page_checksum": True}


class AnswerWriter:
    """Writes answers in a stream; what a killed process has written is kept and continued.

    Rows go to ``<path>.partial`` as JSON lines and are flushed batch by batch. When the block ends without an error the
    file takes its name, or is turned into parquet where the name ends so. One process at a time writes a file. ``-`` is
    the standard output.

    Args:
        path: The file to write: ``.jsonl``, ``.parquet``, or ``-``.
        overwrite: Replace a file that is there, and do not continue what was left of it.

    Attributes:
        done: Number of answers that an earlier process has left in the partial file.

    Raises:
        UsageError: another ending, a directory, a file that is there already, or, when the block begins, one that
            another process is writing.
    """

    def __init__(self, path: str | Path, overwrite: bool = False) -> None:
        self.standard = str(path) == "-"
        self.path = Path(path)
        self.partial = self.path.with_name(self.path.name + ".partial")
        self.done, self.overwrite = 0, overwrite
        self._stream: IO[bytes] | None = None
        self._held = ExitStack()  # of lock and stream
        if self.standard:
            return
        check_ending(self.path)
        if self.path.is_dir():
            raise UsageError(f"{self.path} is a directory; give a file")
        self._refuse_what_is_there()

    def _refuse_what_is_there(self) -> None:
        if self.path.exists() and not self.overwrite:
            raise UsageError(f"{self.path} exists; give another file, or overwrite=True (--overwrite)")

    def __enter__(self) -> AnswerWriter:
        """Open the stream, behind the last whole line that is there."""
        if self.standard:
            self._stream = sys.stdout.buffer
            return self
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with ExitStack() as undo:
            undo.enter_context(self._locked())
            self._refuse_what_is_there()  # the process that was writing it may just have ended
            if self.overwrite:
                self.partial.unlink(missing_ok=True)
            self._stream = undo.enter_context(self.partial.open("ab+"))
            self.done, end = _whole_lines(self._stream)
            self._stream.truncate(end)
            self._held = undo.pop_all()
        return self

    @contextmanager
    def _locked(self) -> Iterator[None]:
        lock = FileLock(self.path.with_name(f".{self.path.name}.lock"), fallback_to_soft=False)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            busy = f"another process is writing {self.path}; wait until it ends, or give another file"
            raise UsageError(busy) from None
        try:
            yield
        finally:
            Path(lock.lock_file).unlink(missing_ok=True)
            lock.release()

    def left(self) -> Iterator[Row]:
        """The answers that an earlier process has left.

        Raises:
            UsageError: a line that is no answer.
        """
        return islice(json_rows(self.partial), self.done)

    def write(self, rows: Iterable[Row]) -> None:
        """Append rows.

        Raises:
            RunError: they could not be written, as on a full disk; what was written before stays.
        """
        assert self._stream is not None, "use it in a with block"
        try:
            self._stream.write(b"".join(_line(row) for row in rows))
            self._stream.flush()
        except OSError as error:
            raise self._failure(error) from error

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Give the file its name, unless the block ended with an error."""
        if self.standard or self._stream is None:
            return
        with self._held:
            self._end(self._stream, whole=kind is None)

    def _end(self, stream: IO[bytes], whole: bool) -> None:
        """Close the stream and, where all answers are in it, give the file its name."""
        if not whole:
            with suppress(OSError):  # what could not be written is written no better now
                stream.close()
            return
        try:
            os.fsync(stream.fileno())
            stream.close()
            if self.path.suffix == ".parquet":
                _to_parquet(self.partial, self.path)
                self.partial.unlink()
            else:
                os.replace(self.partial, self.path)
        except OSError as failed:
            raise self._failure(failed) from failed

    def _failure(self, error: OSError) -> RunError:
        kept = "" if self.standard else f"; what is in {self.partial} is kept, and the same command continues it"
        return RunError(f"answers could not be written to {self.path}: {error.strerror}{kept}")


def _line(row: Row) -> bytes:
    """A row as a line of JSON; what JSON has no kind for (a date in a parquet file) is its text.

    Half a surrogate pair, which UTF-8 has no bytes for, stays the escape that it was read from.
    """
    return json.dumps(row, ensure_ascii=False, default=str).encode("utf-8", "backslashreplace") + b"\n"


def _to_parquet(lines: Path, path: Path) -> None:
    """JSON lines as parquet in flat memory: one pass finds the types, another writes.

    Raises:
        RunError: a column whose values no type of parquet holds all, such as numbers and texts.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema([])
    try:
        for rows in _chunks(json_rows(lines)):
            names = dict.fromkeys(name for row in rows for name in row)
            found = pa.table({name: pa.array([row.get(name) for row in rows]) for name in names}).schema
            schema = pa.unify_schemas([schema, found], promote_options="permissive")
        with replacing(path) as temporary, pq.ParquetWriter(temporary, schema, **_PARQUET) as writer:
            for rows in _chunks(json_rows(lines)):
                writer.write_table(pa.Table.from_pylist(rows, schema))
    except (pa.ArrowException, OverflowError, UnicodeEncodeError) as error:
        raise RunError(
            f"{path} could not be made, since parquet has no type for the values of a column "
            f"({str(error).splitlines()[0]}); all answers are in {lines} as JSON lines: rename it to end in .jsonl"
        ) from error


def _chunks(rows: Iterator[Row]) -> Iterator[list[Row]]:
    while chunk := list(islice(rows, CHUNK)):
        yield chunk


def _whole_lines(stream: IO[bytes]) -> tuple[int, int]:
    """How many lines of a file are whole, and where the last of them ends."""
    stream.seek(0)
    count = end = 0
    for line in stream:
        if not line.endswith(b"\n"):
            break
        count, end = count + 1, end + len(line)
    return count, end
