"""The file ``predictions.parquet``: what a run predicted, from which every metric follows without its model.

One row a question: ``example_id`` (the source's name), ``dataset``, ``label``, ``probs [C]``, ``member_probs [S][C]``
(null for a Gaussian), ``logit_mean [C-1]`` and ``logit_cov [C-1][C-1]`` (null for members), ``true_probs [C]`` where
they are known, ``member_logits [S][C]`` and ``logsumexp [S]`` where they were kept, and ``key``, a number made of the
question's content (files of version 0.1.0 have none). C is each question's own number of options, S the number of
members.
The metadata of the file holds the schema number, the method, the seed, a fitted temperature, and how many questions
each dataset has.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch

from bayeslora.errors import UsageError
from bayeslora.files import checked, parse_object, replacing, with_checksum
from bayeslora.metrics.answers import UNKNOWN, Answers
from bayeslora.results.ragged import Lengths, from_lists, to_lists
from bayeslora.types import CONTRACT_VERSION

_REMEDY = "run the test again"
_METADATA = b"bayeslora"
_TOLERANCE = 1e-6  # of a sum of probabilities; they are written as doubles


@dataclass(frozen=True)
class _Column:
    """A column of lists: its name in the file, the attribute of Answers it holds, and what its axes count."""

    name: str
    attribute: str
    axes: tuple[str, ...]
    absent: float = 0.0  # what stands for an option that a question does not have


_COLUMNS = (
    _Column("probs", "probs", ("options",)),
    _Column("member_probs", "members", ("members", "options")),
    _Column("logit_mean", "logit_mean", ("contrasts",), -np.inf),
    _Column("logit_cov", "logit_cov", ("contrasts", "contrasts")),
    _Column("true_probs", "true_probs", ("options",)),
    _Column("member_logits", "logits", ("members", "options"), -np.inf),
    _Column("logsumexp", "logsumexp", ("members",)),
)


@dataclass(frozen=True)
class PredictionFile:
    """What one run predicted.

    Attributes:
        datasets: Name to answers, the in-distribution test set first.
        method: Name of the method.
        seed: Seed of the run.
        temperature: What logits were divided by, where it was fitted.
    """

    datasets: Mapping[str, Answers]
    method: str
    seed: int | None = None
    temperature: float | None = None


def write_predictions(predictions: PredictionFile, path: Path) -> None:
    """Write ``predictions.parquet``, whole or not at all.

    Args:
        predictions: The answers of every dataset, with the method and the seed.
        path: The file to write.
    """
    table = pa.concat_tables([_table(name, answers) for name, answers in predictions.datasets.items()])
    header = {
        "schema": CONTRACT_VERSION,
        "method": predictions.method,
        "seed": predictions.seed,
        "temperature": predictions.temperature,
        "examples": {name: len(answers) for name, answers in predictions.datasets.items()},
    }
    named = table.replace_schema_metadata({_METADATA: json.dumps(with_checksum(header))})
    with replacing(path) as temporary:
        pq.write_table(named, temporary, compression="zstd", write_page_checksum=True)


def read_predictions(path: Path) -> PredictionFile:
    """Read and check ``predictions.parquet``.

    Raises:
        UsageError: If there is no such file, it is not one of ours or of another schema, examples are missing or
            repeated, or probabilities are not probabilities.
    """
    try:
        table = pq.read_table(path, page_checksum_verification=True)
    except FileNotFoundError:
        raise UsageError(f"no predictions at {path}; `bayeslora test` writes them") from None
    except (OSError, pa.ArrowException) as error:
        raise UsageError(f"{path} is damaged or no parquet file: {str(error).splitlines()[0]}") from None
    try:
        return _predictions(table, path)
    except (AttributeError, KeyError, TypeError, ValueError, pa.ArrowException) as error:
        if isinstance(error, UsageError):
            raise
        raise UsageError(f"{path} is damaged ({type(error).__name__}: {error}); {_REMEDY}") from error


def _predictions(table: pa.Table, path: Path) -> PredictionFile:
    header = _header(table, path)
    datasets = {}
    for name, expected in header["examples"].items():
        where = f"{name} in {path}"
        rows = table.filter(pc.equal(table["dataset"], name))
        _check_examples(rows["example_id"], expected, where)
        datasets[name] = _answers(rows, where)
        _check_values(datasets[name], where)
    if sum(header["examples"].values()) != len(table):
        raise UsageError(f"{path}: datasets other than {', '.join(datasets)} have been added")
    return PredictionFile(datasets, header["method"], header["seed"], header.get("temperature"))


def _table(name: str, answers: Answers) -> pa.Table:
    held = {attribute: tensor.numpy() for attribute, tensor in answers.tensors().items()}
    lengths = {"options": held["options"], "contrasts": held["options"] - 1}
    columns: dict[str, Any] = {
        "example_id": pa.array(answers.example_id, pa.string()),
        "dataset": pa.array([name] * len(answers), pa.string()),
        "label": pa.array(held["label"], pa.int64(), mask=held["label"] == UNKNOWN),
        "key": pa.array(held["key"], pa.int64()) if "key" in held else pa.nulls(len(answers), pa.int64()),
    }
    for column in _COLUMNS:
        if column.attribute in held:
            values = held[column.attribute]
            lengths["members"] = np.full(len(answers), values.shape[1])
            columns[column.name] = to_lists(values, [lengths[axis] for axis in column.axes])
        else:
            columns[column.name] = pa.nulls(len(answers), _list_type(len(column.axes)))
    return pa.table(columns)


def _list_type(depth: int) -> pa.DataType:
    return pa.list_(pa.float64() if depth == 1 else _list_type(depth - 1))


def _header(table: pa.Table, path: Path) -> dict[str, Any]:
    raw = (table.schema.metadata or {}).get(_METADATA)
    if raw is None:
        raise UsageError(f"{path} was not written by bayeslora: its metadata does not say so")
    header = checked(parse_object(raw, path, _REMEDY), path, _REMEDY)
    if header.get("schema") != CONTRACT_VERSION:
        raise UsageError(f"{path} has schema {header.get('schema')}; this version reads schema {CONTRACT_VERSION}")
    return header


def _check_examples(example_id: pa.ChunkedArray, expected: int, where: str) -> None:
    counts = pc.value_counts(example_id)
    repeated = counts.filter(pc.greater(counts.field("counts"), 1))
    if len(repeated):
        names = ", ".join(map(str, repeated.field("values")[:3].to_pylist()))
        raise UsageError(f"{where}: {len(repeated)} examples are repeated ({names}); each may stand there once")
    if len(example_id) != expected:
        raise UsageError(f"{where}: {len(example_id)} examples where there should be {expected}; run the test again")


def _answers(rows: pa.Table, where: str) -> Answers:
    values: dict[str, torch.Tensor] = {}
    counts: dict[str, Lengths] = {}
    for column in _COLUMNS:
        lists = rows[column.name].combine_chunks()
        if lists.null_count == len(lists):
            continue
        try:
            array, lengths = from_lists(lists, column.absent)
        except ValueError as error:
            raise UsageError(f"{where}: column {column.name}: {error}") from None
        for axis, length in zip(column.axes, lengths, strict=True):
            if not np.array_equal(counts.setdefault(axis, length), length):
                raise UsageError(f"{where}: column {column.name} has another number of {axis} than the columns before")
        values[column.attribute] = torch.from_numpy(array)
    if "probs" not in values or ("members" not in values and "logit_cov" not in values):
        raise UsageError(f"{where}: there are no probs, or neither member_probs nor logit_mean and logit_cov")
    if "key" in rows.column_names and rows["key"].null_count == 0:
        values["key"] = torch.from_numpy(rows["key"].to_numpy().astype(np.int64))
    label = rows["label"].fill_null(UNKNOWN).to_numpy().astype(np.int64)
    options = torch.from_numpy(counts["options"])
    return Answers(**values, label=torch.from_numpy(label), options=options, example_id=rows["example_id"].to_pylist())


def _check_values(answers: Answers, where: str) -> None:
    bad = {"label": (answers.label >= answers.options) | (answers.label < UNKNOWN)}
    for name in ("probs", "members", "true_probs"):
        probs = answers.tensors().get(name)
        if probs is not None:
            good = (probs >= 0).all(-1) & ((probs.sum(-1) - 1).abs() <= _TOLERANCE)  # false for NaN
            bad[f"{name} that sum to one"] = ~good.reshape(len(probs), -1).all(-1)
    for name, wrong in bad.items():
        if wrong.any():
            first = answers.example_id[int(wrong.nonzero()[0])]
            raise UsageError(f"{where}: {int(wrong.sum())} examples without valid {name}, the first is {first}")
