"""The command ``bayeslora predict --run``: answers to the questions of a file, from a run that was tested."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import islice, starmap
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bayeslora.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable

    from bayeslora.serving.predictor import Predictor, Prepared

STANDARD = "-"
_BATCHES = 8  # of the run, that are read and answered at a time
_SKIP = "--skip-bad-lines"
_LEFT = "move it away, give another --out, or start over with --overwrite"
_TEXTS = ("question", "question_stem", "context", "sentence", "sentence1", "sentence2")  # of a question
_SAME = 0.02  # between a probability in one batch and in another: what bf16 takes, see docs/serving.md
Line = tuple[int, Any]  # its number, from 1 on, and what stands there: a row, or what is wrong with it


def predict(
    run: Path | str,
    questions: Path | str,
    out: Path | str,
    device: str = "auto",
    skip_bad_lines: bool = False,
    overwrite: bool = False,
) -> tuple[int, int]:
    """Answer every question of a file, in a stream: memory does not grow with the file.

    A process that is killed leaves its answers in ``<out>.partial``; the same call goes on behind them. Those to other
    questions or of another run are refused: the questions are compared, and the first of them are answered again.

    Args:
        run: Folder of a run that was tested.
        questions: JSON lines or parquet, a question a row, without or with labels; ``-`` reads JSON lines from the
            standard input.
        out: The file of answers (:mod:`bayeslora.results.answer_file`), ``.jsonl`` or ``.parquet``; ``-`` writes JSON
            lines to the standard output.
        device: ``auto``, ``cpu`` or ``cuda``.
        skip_bad_lines: Leave out what is no question, and say so.
        overwrite: Replace a file of answers that is there.

    Returns:
        How many questions were answered by this call, and how many lines were left out.

    Raises:
        UsageError: the run cannot answer, a file that is not there or in the way, a line that is no question, or
            answers that were left of something else.
        RunError: answers could not be written.
    """
    from bayeslora.results.answer_writer import AnswerWriter
    from bayeslora.serving.predictor import Predictor

    lines = _lines(questions)  # a file that is not there is said before a model is loaded
    writer = AnswerWriter(out, overwrite)  # so is one that is in the way
    predictor = Predictor.from_run(run, device)
    asked = _Asked(predictor, str(questions), skip_bad_lines)
    with writer:
        left, answered = writer.left(), 0
        checked = writer.done == 0
        with _progress(questions) as step:
            while chunk := list(islice(lines, _BATCHES * predictor.kept.batch_size)):
                found = asked.prepared(chunk)
                before = list(islice(left, len(found)))
                _check_left(before, found, None if checked else predictor, writer.partial)
                checked = True
                if fresh := found[len(before) :]:
                    prepared, rows = zip(*fresh, strict=True)
                    writer.write(predictor.rows(prepared, rows))
                answered += len(fresh)
                step(len(chunk))
        _check_left(list(islice(left, 1)), [], None, writer.partial)
    return answered, asked.left_out


def _check_left(
    rows: Sequence[dict[str, Any]],
    asked: Sequence[tuple[Prepared, dict[str, Any]]],
    predictor: Predictor | None,
    partial: Path,
) -> None:
    """Refuse answers that were left by a command with other questions or, where a predictor is given, another run.

    Args:
        rows: The answers.
        asked: The questions, at least as many, that they should be answers to.
        predictor: Answers them again, as far as the arithmetic of a batch's shape lets it give the same; None does not.
        partial: The file that they are in.
    """
    pairs = list(zip(rows, asked, strict=False))
    if len(pairs) < len(rows) or not all(starmap(_is_of, pairs)):
        raise UsageError(f"{partial} holds answers to other questions; {_LEFT}")
    if predictor is None:
        return
    again = predictor.rows([prepared for _, (prepared, _) in pairs], [{}] * len(pairs))
    for row, own in zip(rows, again, strict=True):
        if any(abs(a - b) > _SAME for a, b in zip(row["probabilities"], own["probabilities"], strict=True)):
            raise UsageError(f"{partial} holds answers of another run; {_LEFT}")


def _is_of(row: dict[str, Any], asked: tuple[Prepared, dict[str, Any]]) -> bool:
    """Whether an answer is one to this question."""
    question, given = asked[0].question, asked[1]
    same = row.get("id") == question.id and row.get("options") == list(question.options)
    return same and all(row.get(name) == given.get(name) for name in _TEXTS)


class _Asked:
    """Turns lines into questions that can be asked."""

    def __init__(self, predictor: Predictor, source: str, skip: bool) -> None:
        self.predictor, self.skip, self.left_out = predictor, skip, 0
        self.source = "the standard input" if source == STANDARD else source

    def prepared(self, lines: Sequence[Line]) -> list[tuple[Prepared, dict[str, Any]]]:
        """The questions of some lines, each with its row."""
        rows: list[dict[str, Any]] = []
        numbers: list[int] = []
        questions = []
        for number, row in lines:
            try:
                if isinstance(row, UsageError):
                    raise row
                questions.append(self.predictor.question(row, fallback_id=str(number)))
            except UsageError as error:
                self._refuse(number, error)
                continue
            rows.append(row)
            numbers.append(number)
        try:
            return list(zip(self.predictor.prepare(questions), rows, strict=True))
        except UsageError:  # one of them: find it
            found = []
            for question, row, number in zip(questions, rows, numbers, strict=True):
                try:
                    found += [(one, row) for one in self.predictor.prepare([question])]
                except UsageError as error:
                    self._refuse(number, error)
            return found

    def _refuse(self, number: int, error: UsageError) -> None:
        if not self.skip:
            raise UsageError(
                f"line {number} of {self.source}: {error}; mend it and give the same command again, or leave such "
                f"lines out with {_SKIP}"
            ) from error
        self.left_out += 1
        print(f"line {number} of {self.source} was left out: {error}", file=sys.stderr)


def _lines(source: Path | str) -> Iterator[Line]:
    """The lines of a file of questions, one after another.

    Raises:
        UsageError: no such file, or of another kind.
    """
    if str(source) == STANDARD:
        return _json_lines(sys.stdin.buffer)
    path = Path(source)
    if not path.is_file():
        raise UsageError(f"there is no file of questions {path}")
    if path.suffix == ".parquet":
        from bayeslora.results.answer_file import read_rows

        return enumerate(read_rows(path), 1)
    if path.suffix != ".jsonl":
        raise UsageError(f"{path} does not end in .jsonl or .parquet, which a file of questions does")
    return _json_lines(path.open("rb"))


def _json_lines(stream: Any) -> Iterator[Line]:
    from bayeslora.results.answer_file import json_lines

    with stream:
        for number, row in json_lines(stream):
            yield number, UsageError(f"it {row}") if isinstance(row, str) else row


@contextmanager
def _progress(source: Path | str) -> Iterator[Callable[[int], None]]:
    """Shows on the standard error, where that is a terminal, how far the file is answered."""
    from rich.console import Console
    from rich.progress import MofNCompleteColumn, Progress, TimeRemainingColumn

    console = Console(stderr=True)
    with Progress(
        *Progress.get_default_columns()[:2],
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
    ) as progress:
        task = progress.add_task("questions", total=_count(source) if console.is_terminal else None)
        yield lambda count: progress.advance(task, count)


def _count(source: Path | str) -> int | None:
    """Number of questions in a file; None of a stream."""
    path = Path(source)
    if str(source) == STANDARD:
        return None
    if path.suffix == ".parquet":
        import pyarrow.parquet as pq

        return int(pq.ParquetFile(path).metadata.num_rows)
    with path.open("rb") as file:
        return sum(1 for line in file if line.strip())


def main(args: Sequence[str]) -> int:
    """The command ``bayeslora predict --run``; returns its exit status."""
    parser = argparse.ArgumentParser(
        prog="bayeslora predict",
        description="Answer new questions with a run that was tested: probabilities, uncertainty, whether to abstain.",
        epilog="With -c CONFIG in the place of --run, the test sets of that configuration are predicted; "
        "bayeslora predict -c CONFIG --help lists those options.",
    )
    parser.add_argument("--run", required=True, metavar="DIR", help="folder of a run that was tested")
    parser.add_argument("--questions", required=True, metavar="FILE", help=".jsonl or .parquet; - for standard input")
    parser.add_argument("--out", required=True, metavar="FILE", help=".jsonl or .parquet; - for standard output")
    parser.add_argument("--device", default="auto", help="auto (default), cpu or cuda")
    parser.add_argument(_SKIP, action="store_true", help="leave out lines that are no questions, and say so")
    parser.add_argument("--overwrite", action="store_true", help="replace a file of answers that is there")
    given = parser.parse_args(args)
    answered, left_out = predict(
        given.run, given.questions, given.out, given.device, given.skip_bad_lines, given.overwrite
    )
    where = "the standard output" if given.out == STANDARD else given.out
    said = f"{answered} questions answered, in {where}"
    print(f"{said}; {left_out} lines were left out" if left_out else said, file=sys.stderr)
    return 0
