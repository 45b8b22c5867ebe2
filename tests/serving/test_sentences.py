"""A run that classifies sentences is asked in the shape that it was trained on."""

from pathlib import Path

import pytest

from bayeslora import Predictor, UsageError
from bayeslora.datamodules.jsonl import JSONL
from bayeslora.datamodules.prompting import Prompting

CLASSES = ("balance", "transfer")
ROWS = [
    {"id": "0", "sentence": "what do i have", "label": "balance"},
    {"id": "1", "sentence": "send it", "label": 1},
    {"id": "2", "sentence": "send it all"},
    {"id": "3", "sentence1": "send it", "sentence2": "all of it", "label": "transfer"},
]


@pytest.fixture
def predictor() -> Predictor:
    """One that has met no model: a question is checked before any is asked."""
    found = object.__new__(Predictor)
    found.prompting = Prompting("jsonl", "default", "embedded", None, "head", 64, pairs=True, options=CLASSES)
    return found


def test_a_row_is_the_question_that_the_data_make_of_it(predictor: Predictor, tmp_path: Path) -> None:
    file = tmp_path / "train.jsonl"
    file.write_text('{"sentence": "a", "label": "balance"}\n{"sentence": "b", "label": "transfer"}\n')
    data = JSONL(str(file))
    for row in ROWS:
        assert predictor.question(row) == data.parse(row, "x")
    assert predictor.question("send it all").content == predictor.question(ROWS[2]).content


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"sentence": "a", "label": "other"}, "label 'other' is not a class"),
        ({"sentence1": "a"}, "sentence2"),
        ({"sentence": 3}, "allowed: text"),
        ({"question": "a", "options": ["x", "y"]}, "has other classes than the run"),
    ],
)
def test_what_is_none_is_said(predictor: Predictor, row: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        predictor.question(row)
