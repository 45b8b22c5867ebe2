"""Files of answers, as JSON lines or parquet: one row a question, written and read in a stream.

A row holds every column of the question it answers, and of the answer:

=================  ===============================================================================================
``id``             the question's name, a text
``options``        what there was to choose from, C texts
``probabilities``  of the options, C numbers
``choice``         index of the most probable option
``answer``         its text
``confidence``     its probability
``total``          uncertainty, the entropy of the probabilities, in nats
``aleatoric``      the part of it that the members agree on
``epistemic``      the part on which they differ: mutual information of answer and member
``set``            indices of the options in the prediction set; null where the run has no decision rule
``abstain``        whether the question is better left to a person; null likewise
``reason``         why, a text; empty where it is answered
``label``          index of the right option; null where it is not known
=================  ===============================================================================================

A column of the question that has one of these names and is not the same thing is kept as ``input_<name>``, with one
more ``input_`` where that is a column of the question too.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bayeslora.decisions.rule import Decided
from bayeslora.errors import UsageError
from bayeslora.metrics.answers import UNKNOWN, Answers

Row = dict[str, Any]
COLUMNS = (
    "id", "options", "probabilities", "choice", "answer", "confidence", "total", "aleatoric", "epistemic", "set",
    "abstain", "reason", "label",
)  # fmt: skip
_READ = ("id", "probabilities", "aleatoric", "set", "abstain", "label", "true_probs")
_GIVEN = ("id", "options", "label")  # columns that a question has under the same name and with the same meaning
CHUNK = 1024  # rows at a time
_TOLERANCE = 1e-5  # of a sum of probabilities


def answer_rows(
    answers: Answers, options: Sequence[Sequence[str]], inputs: Sequence[Mapping[str, Any]], decided: Decided | None
) -> list[Row]:
    """The rows of N questions.

    Args:
        answers: What is predicted for them; their ``example_id`` are the ids.
        options: The texts of the options, for each question.
        inputs: Every column of each question.
        decided: What the run's decision rule makes of them; None where it has none.
    """
    columns = [t.tolist() for t in (answers.probs, answers.total, answers.aleatoric, answers.epistemic, answers.label)]
    rows = []
    for place, (probs, total, aleatoric, epistemic, label) in enumerate(zip(*columns, strict=True)):
        texts = list(options[place])
        probs = probs[: len(texts)]
        choice = max(range(len(texts)), key=probs.__getitem__)
        made: Row = {"id": answers.example_id[place], "options": texts, "probabilities": probs, "choice": choice}
        made |= {"answer": texts[choice], "confidence": probs[choice]}
        made |= {"total": total, "aleatoric": aleatoric, "epistemic": epistemic}
        made |= _decided(decided, place) | {"label": None if label == UNKNOWN else label}
        rows.append(_kept(inputs[place], made) | made)
    return rows


def _decided(decided: Decided | None, place: int) -> Row:
    if decided is None:
        return {"set": None, "abstain": None, "reason": ""}
    members = decided.sets[place].nonzero().squeeze(-1).tolist()
    return {"set": members, "abstain": bool(decided.abstain[place]), "reason": decided.reason[place]}


def _kept(given: Mapping[str, Any], made: Row) -> Row:
    """The columns of the question; one whose name is taken by another thing is renamed."""
    return {_name(key, value, made, given): value for key, value in given.items()}


def _name(key: str, value: Any, made: Row, given: Mapping[str, Any]) -> str:
    same = key in _GIVEN and (value == made[key] or str(value) == str(made[key]))
    if key not in COLUMNS or same:
        return key
    name = f"input_{key}"
    while name in given:  # answers to what was the answer to another run already
        name = f"input_{name}"
    return name


def read_rows(path: str | Path) -> Iterator[Row]:
    """The rows of a file of answers, one after another.

    Raises:
        UsageError: no such file, another ending, or a line that is no JSON object, with its number.
    """
    path = Path(path)
    check_ending(path)
    try:
        yield from _parquet_rows(path) if path.suffix == ".parquet" else json_rows(path)
    except FileNotFoundError:
        raise UsageError(f"there is no file {path}; `bayeslora predict` writes answers") from None


@dataclass(frozen=True)
class LabelledAnswers:
    """What a file says about its labelled questions.

    Attributes:
        answers: The answers, without members: their aleatoric uncertainty is the file's.
        abstain: Which questions were left to a person, bool ``[N]``; None where the file does not say.
        sets: The prediction sets, bool ``[N, C]``; None likewise.
        unlabelled: Number of further questions, which have no label.
    """

    answers: Answers
    abstain: Tensor | None
    sets: Tensor | None
    unlabelled: int


def read_answers(path: str | Path) -> LabelledAnswers:
    """The labelled answers of a file, for metrics.

    Raises:
        UsageError: a row lacks a column or its probabilities are none, or no question has a label.
    """
    kept, unlabelled = [], 0
    for number, row in enumerate(read_rows(path), 1):
        if row.get("label") is None:
            unlabelled += 1
        else:
            kept.append(_checked({key: row.get(key) for key in _READ}, f"row {number} of {path}"))
    if not kept:
        raise UsageError(f"none of the {unlabelled} answers in {path} has a label; metrics need a column 'label'")
    answers, sets = _answers(kept), None
    if all(row["set"] is not None for row in kept):
        sets = torch.zeros_like(answers.probs, dtype=torch.bool)
        for place, row in enumerate(kept):
            sets[place, row["set"]] = True
    decided = all(row["abstain"] is not None for row in kept)
    abstain = torch.tensor([bool(row["abstain"]) for row in kept]) if decided else None
    return LabelledAnswers(answers, abstain, sets, unlabelled)


def _answers(rows: Sequence[Row]) -> Answers:
    known = all(row["true_probs"] is not None for row in rows)
    return Answers(
        probs=_stacked([row["probabilities"] for row in rows]),
        label=torch.tensor([row["label"] for row in rows]),
        options=torch.tensor([len(row["probabilities"]) for row in rows]),
        kept_aleatoric=torch.tensor([row["aleatoric"] for row in rows], dtype=torch.float64),
        true_probs=_stacked([row["true_probs"] for row in rows]) if known else None,
        example_id=[str(row["id"]) for row in rows],
    )


def _stacked(vectors: Sequence[Sequence[float]]) -> Tensor:
    width = max(map(len, vectors))
    return torch.tensor([[*vector, *[0.0] * (width - len(vector))] for vector in vectors], dtype=torch.float64)


def _checked(row: Row, where: str) -> Row:
    probs, label, true, members = (row[name] for name in ("probabilities", "label", "true_probs", "set"))
    if not (_are_numbers(probs) and _are_numbers([row["aleatoric"]])):
        raise UsageError(f"{where} lacks numbers in 'probabilities' or 'aleatoric', which `bayeslora predict` writes")
    if not _is_law(probs):
        raise UsageError(f"{where} has 'probabilities' that do not sum to one: {probs}")
    if true is not None and not (_are_numbers(true) and len(true) == len(probs) and _is_law(true)):
        raise UsageError(f"{where} has 'true_probs' {true}; allowed: as many numbers as options, which sum to one")
    if type(label) is not int or not 0 <= label < len(probs):
        raise UsageError(f"{where} has label {label!r}; allowed: 0 to {len(probs) - 1}, or null where it is not known")
    places = range(len(probs))
    if members is not None and not (isinstance(members, list) and all(type(m) is int and m in places for m in members)):
        raise UsageError(f"{where} has the set {members}; allowed: indices from 0 to {len(probs) - 1}")
    if not (row["abstain"] is None or isinstance(row["abstain"], bool)):
        raise UsageError(f"{where} has 'abstain' {row['abstain']!r}; allowed: true, false, or null")
    return row


def _are_numbers(values: Any) -> bool:
    """Whether something is a list of finite numbers."""
    if not isinstance(values, list):
        return False
    return all(type(value) in (int, float) and abs(value) <= sys.float_info.max for value in values)


def _is_law(values: Sequence[float]) -> bool:
    """Whether two numbers or more are probabilities that sum to one."""
    return len(values) >= 2 and min(values) >= 0 and abs(sum(values) - 1) <= _TOLERANCE


def json_lines(stream: Iterable[bytes]) -> Iterator[tuple[int, Row | str]]:
    """The lines of JSON lines that are not empty: their numbers from 1 on, and the object or what is wrong with it.

    Args:
        stream: The lines.
    """
    for number, line in enumerate(stream, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            yield number, f"is no JSON: {error}"
            continue
        yield number, row if isinstance(row, dict) else f"is no JSON object but {type(row).__name__}"


def json_rows(path: Path) -> Iterator[Row]:
    """The objects of a file of JSON lines; empty lines are passed over.

    Args:
        path: The file.

    Raises:
        UsageError: a line that is no JSON object, with its number.
    """
    with path.open("rb") as file:
        for number, row in json_lines(file):
            if isinstance(row, str):
                raise UsageError(f"line {number} of {path} {row}")
            yield row


def _parquet_rows(path: Path) -> Iterator[Row]:
    import pyarrow as pa  # takes its time to load
    import pyarrow.parquet as pq

    try:
        for batch in pq.ParquetFile(path, page_checksum_verification=True).iter_batches(CHUNK):
            yield from batch.to_pylist()
    except (OSError, pa.ArrowException) as error:
        raise UsageError(f"{path} is not a readable parquet file: {str(error).splitlines()[0]}") from None


def check_ending(path: Path) -> None:
    """Refuse a file that is neither JSON lines nor parquet by its name."""
    if path.suffix not in (".jsonl", ".parquet"):
        raise UsageError(f"{path} does not end in .jsonl or .parquet, which a file of answers does")
