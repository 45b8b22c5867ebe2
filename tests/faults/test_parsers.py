"""Whatever stands in a user's file: a right result, or an error of one line that says what is wrong.

Requests of the server are in ``tests/serving/test_hostile.py``. ``BAYESLORA_LONG=1``: 2,000 files of a kind, not 60.
"""

import json
import os
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from bayeslora.commands.checkpoints import load
from bayeslora.commands.saved_config import read_sealed
from bayeslora.datamodules.jsonl import JSONL
from bayeslora.datamodules.protocols import get_protocol
from bayeslora.datamodules.question import Question
from bayeslora.decisions.rule_file import load_rule
from bayeslora.errors import UsageError
from bayeslora.grid.specification import Grid, read_grid
from bayeslora.posteriors.point import Point
from bayeslora.posteriors.state import load_posterior, save_posterior
from bayeslora.results.answer_file import json_rows
from bayeslora.results.prediction_file import PredictionFile, read_predictions

LONG = bool(os.environ.get("BAYESLORA_LONG"))
FEW = settings(
    max_examples=2000 if LONG else 60, deadline=None, suppress_health_check=list(HealthCheck), derandomize=not LONG
)
TEXTS = st.text(st.characters(), max_size=10) | st.sampled_from(["", "\0", "\ud800", "</s>", "a\nb\u2028c", "yes", "٣"])
NUMBERS = st.integers() | st.floats() | st.sampled_from([10**30, -1, 10**9, 1e400])
SCALARS = st.none() | st.booleans() | NUMBERS | TEXTS


def nested(keys: st.SearchStrategy[str]) -> st.SearchStrategy[Any]:
    """Any JSON value, whose objects have keys that a file may have."""
    return st.recursive(
        SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(keys, inner, max_size=5), max_leaves=12
    )


def right_or_refused(read: Callable[[], Any], kinds: type | tuple[type, ...]) -> Any:
    """What is read, of a kind that it may be, or None where it is refused in one line."""
    try:
        found = read()
    except UsageError as error:
        said = str(error)
    else:
        assert isinstance(found, kinds)
        return found
    assert 0 < len(said) < 2000
    assert len(said.splitlines()) == 1, said
    return None


# --- questions -------------------------------------------------------------------------------------------------------

FIELDS = st.sampled_from(
    [
        "question",
        "question_stem",
        "options",
        "choices",
        "label",
        "answer",
        "answerKey",
        "sentence",
        "sentence1",
        "sentence2",
        "context",
        "id",
        "text",
    ]
)
OPTIONS = st.lists(TEXTS, max_size=4)
CHOICES = OPTIONS | st.fixed_dictionaries({"text": OPTIONS, "label": st.lists(TEXTS, max_size=4)})
LABELS = st.integers(-2, 4) | SCALARS
ROWS = st.fixed_dictionaries(
    {"question": TEXTS}, optional={"options": OPTIONS, "choices": CHOICES, "label": LABELS, "answerKey": LABELS}
)
SENTENCES = st.fixed_dictionaries({"sentence": TEXTS}, optional={"label": LABELS, "id": TEXTS})
LINES = (ROWS | SENTENCES | nested(FIELDS)).map(lambda row: json.dumps(row).encode()) | st.binary(max_size=40)


@given(lines=st.lists(LINES, max_size=4))
@example(lines=[b'{"question": "q", "options": ["a", "b"], "label": 1}'])
@example(lines=[b'{"sentence": "s", "label": 1000000000}'])
@example(lines=[b"[" * 100_000])
@FEW
def test_files_of_questions(tmp_path_factory: pytest.TempPathFactory, lines: list[bytes]) -> None:
    file = tmp_path_factory.getbasetemp() / "mine.jsonl"
    file.write_bytes(b"\n".join(lines))
    found = right_or_refused(lambda: JSONL(str(file), whole=True).load("test", None), list)
    for question in found or ():
        assert isinstance(question, Question)
        assert -1 <= question.label < len(question.options)
        assert all(isinstance(text, str) for text in (question.question, question.context, *question.options))


@given(lines=st.lists(LINES, max_size=3))
@FEW
def test_files_of_answers(tmp_path_factory: pytest.TempPathFactory, lines: list[bytes]) -> None:
    file = tmp_path_factory.getbasetemp() / "answers.jsonl"
    file.write_bytes(b"\n".join(lines))
    right_or_refused(lambda: list(json_rows(file)), list)


# --- configurations --------------------------------------------------------------------------------------------------

KEYS = st.sampled_from(
    [
        "template",
        "option",
        "option_separator",
        "separator",
        "words",
        "end",
        "system",
        "max_length",
        "name",
        "common",
        "datasets",
        "methods",
        "seeds",
        "options",
        "configs",
        "of",
        "threads",
        "checkpoint",
        "model",
        "trainer",
    ]
)
DOCUMENTS = nested(KEYS).map(lambda value: yaml.safe_dump(value).encode()) | st.binary(max_size=40)
TEMPLATES = st.sampled_from(
    ["{question} {options}", "{question}", "{x}", "{", "{question!r:>9}", "{question.__class__}"]
)
PROTOCOLS = st.fixed_dictionaries(
    {"template": TEMPLATES | TEXTS}, optional={"words": OPTIONS, "option": TEXTS, "end": TEXTS, "max_length": SCALARS}
).map(lambda value: yaml.safe_dump(value).encode())


@given(text=PROTOCOLS | DOCUMENTS)
@example(text=b"a: &a [*a]\n")
@FEW
def test_protocols(tmp_path_factory: pytest.TempPathFactory, text: bytes) -> None:
    file = tmp_path_factory.getbasetemp() / "protocol.yaml"
    file.write_bytes(text)
    right_or_refused(lambda: get_protocol(str(file)), object)


@given(text=DOCUMENTS)
@FEW
def test_grids_and_saved_configurations(tmp_path_factory: pytest.TempPathFactory, text: bytes) -> None:
    file = tmp_path_factory.getbasetemp() / "grid.yaml"
    file.write_bytes(text)
    right_or_refused(lambda: read_grid(file, None), Grid)
    right_or_refused(lambda: read_sealed(file), dict)


# --- what a run has left ---------------------------------------------------------------------------------------------

NAMES = st.sampled_from(
    [
        "schema",
        "family",
        "base",
        "components",
        "values",
        "files",
        "promises",
        "sets",
        "risk",
        "examples",
        "method",
        "seed",
    ]
)
OBJECTS = st.dictionaries(NAMES, nested(NAMES), max_size=6)
FAMILIES = st.sampled_from(
    ["point", "swag", "mixture", "laplace", "tfb", "c_lora", "scalabl", "mean_field", "state", "os"]
)
SPOILT = st.builds(
    lambda family, more: {"schema": 1, "family": family, "base": "", "components": [], "values": {}, **more},
    FAMILIES,
    OBJECTS.map(lambda value: {key: inner for key, inner in value.items() if key not in ("schema", "family")}),
)


@given(record=SPOILT | OBJECTS | nested(NAMES))
@example(record={"schema": 1, "family": "mixture", "base": "", "components": ["000"], "values": {}})
@FEW
def test_posteriors(tmp_path_factory: pytest.TempPathFactory, record: Any) -> None:
    folder = tmp_path_factory.getbasetemp() / "posterior"
    if not folder.exists():
        save_posterior(Point({"layer.weight": torch.ones(2, 2)}), folder)
    (folder / "posterior.json").write_text(json.dumps(record))
    right_or_refused(lambda: load_posterior(folder), object)


@given(record=OBJECTS | nested(NAMES))
@FEW
def test_decision_rules(tmp_path_factory: pytest.TempPathFactory, record: Any) -> None:
    file = tmp_path_factory.getbasetemp() / "decision.json"
    file.write_text(json.dumps(record))
    assert right_or_refused(lambda: load_rule(file), object) is None  # without a schema of its own it is never one


FLOATS = st.lists(st.floats(0, 1) | st.floats() | st.none(), max_size=3)
COLUMNS = st.fixed_dictionaries(
    {},
    optional={
        "dataset": st.sampled_from(["own", "other"]) | st.none(),
        "example_id": st.sampled_from(["a", "b"]) | st.none(),
        "label": st.integers(-2, 3) | st.none(),
        "probs": st.just([0.5, 0.5]) | FLOATS,
        "member_probs": st.just([[0.5, 0.5]]) | st.lists(FLOATS, max_size=2) | st.none(),
        "key": st.integers(0, 9) | st.none(),
    },
)
HEADERS = st.fixed_dictionaries(
    {"schema": st.sampled_from([1, 1, 1, 2])},
    optional={
        "method": SCALARS,
        "seed": SCALARS,
        "examples": st.just({"own": 1}) | st.just({"own": 2}) | nested(TEXTS),
    },
)


@given(rows=st.lists(COLUMNS, max_size=2), header=HEADERS | nested(NAMES))
@example(rows=[{"dataset": "own", "example_id": "a", "label": 1, "probs": [0.5, 0.5], "member_probs": [[0.5, 0.5]]}],
         header={"schema": 1, "method": "SWAG", "seed": 0, "examples": {"own": 1}})  # fmt: skip
@FEW
def test_predictions(tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, Any]], header: Any) -> None:
    file = tmp_path_factory.getbasetemp() / "predictions.parquet"
    table = pa.Table.from_pylist(rows)
    pq.write_table(table.replace_schema_metadata({"bayeslora": json.dumps(header)}), file)
    found = right_or_refused(lambda: read_predictions(file), PredictionFile)
    for answers in found.datasets.values() if found else ():
        assert torch.allclose(answers.probs.sum(-1), torch.ones(len(answers), dtype=torch.float64), atol=1e-5)


@given(content=st.binary(max_size=60))
@example(content=b"")
@FEW
def test_files_that_are_anything(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    file = tmp_path_factory.getbasetemp() / "anything"
    file.write_bytes(content)
    assert right_or_refused(lambda: read_predictions(file), object) is None
    assert right_or_refused(lambda: load(file), object) is None
    assert right_or_refused(lambda: load_rule(file), object) is None
