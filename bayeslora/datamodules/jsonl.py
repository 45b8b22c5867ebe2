"""Questions from your own JSONL files."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from bayeslora.datamodules.multiple_choice import MultipleChoiceDataModule
from bayeslora.datamodules.question import Question, from_choices, from_options
from bayeslora.datamodules.registry import register_family
from bayeslora.datamodules.sampler import permutation
from bayeslora.datamodules.source import Benchmark, Row, json_lines, read_jsonl
from bayeslora.datamodules.splits import CALIBRATION
from bayeslora.errors import UsageError

SPLITS = ("train", "validation", "test")


class JSONL(Benchmark):
    """A folder with ``train.jsonl``, ``validation.jsonl`` and ``test.jsonl``, or a single file.

    A file ``calibration.jsonl`` beside them is the part on which decision rules are fitted.

    A fifth of a single file, always the same one, is the test split; the rest is trained on.

    Each line is ``{"id", "question", "choices": {"text": [..], "label": [..]}, "answerKey"}`` as on the hub, or
    ``{"id", "question", "options": [..], "label": int}``, or, to classify sentences or pairs of them,
    ``{"id", "sentence1", "sentence2", "label": int}`` or ``{"id", "sentence", "label": int}``.

    Args:
        path: The folder or file.
        whole: Take a single file as a test split and leave it whole.
    """

    task = "jsonl"
    sizes: Mapping[str, int] = {}

    def __init__(self, path: str, whole: bool = False) -> None:
        self.path, self.whole = Path(path), whole
        self.name = (
            f"jsonl:{self.path.stem}"  # not the whole path: results, and noise, do not depend on where files lie
        )
        if not self.path.exists():
            raise UsageError(f"path {path} does not exist; give a JSONL file or a folder with {_names(SPLITS)}")

    @property
    def labelled(self) -> tuple[str, ...]:
        """The splits there are."""
        if self.path.is_file():
            return ("test",) if self.whole else ("train", "test")
        found = tuple(split for split in (*SPLITS, CALIBRATION) if (self.path / f"{split}.jsonl").is_file())
        if not {"validation", "test"} & set(found):
            raise UsageError(
                f"{self.path} has no file to test on; give it {_names(SPLITS)} (the second may be missing)"
            )
        return found

    @property
    def pairs(self) -> bool:
        """Whether the rows are sentences or sentence pairs to classify."""
        return bool(self._classes)

    def parse(self, row: Row, fallback_id: str) -> Question:
        """A question from a row of any of the schemas."""
        if self._classes and _is_sentences(row):
            second = row["sentence2"] if "sentence1" in row else row["sentence"]
            label = row["label"]
            if type(label) is not int or label not in range(len(self._classes)):
                raise ValueError(f"label {label!r} is not a class; allowed: 0 to {len(self._classes) - 1}")
            return Question(str(row.get("id", fallback_id)), second, self._classes, label, row.get("sentence1", ""))
        return from_choices(row, fallback_id) if "choices" in row else from_options(row, fallback_id)

    def load(self, split: str, data_dir: str | None) -> list[Question]:
        """All questions of a split; ``data_dir`` is not looked at."""
        if self.path.is_dir():
            return read_jsonl(self.path / f"{split}.jsonl", self.parse, split)
        questions = read_jsonl(self.path, self.parse, self.path.stem)
        if self.whole:
            return questions
        test = set(permutation(len(questions), "test")[: -(-len(questions) // 5)])
        return [question for i, question in enumerate(questions) if (i in test) == (split == "test")]

    def download(self) -> None:
        """Nothing is to be downloaded."""

    @cached_property
    def _classes(self) -> tuple[str, ...]:
        """Names of the classes where the first row is a sentence or a pair of them; the labels of all files count."""
        files = [self.path] if self.path.is_file() else [self.path / f"{split}.jsonl" for split in self.labelled]
        if not all(_is_sentences(row) for _, row in _first(json_lines(files[0]))):
            return ()
        labels = [row.get("label") for file in files for _, row in json_lines(file)]
        return tuple(str(i) for i in range(max((x for x in labels if type(x) is int), default=0) + 1))


register_family("jsonl", lambda path: JSONL(path, whole=True), "path")


class JSONLDataModule(MultipleChoiceDataModule):
    """Questions from your own files, see :class:`JSONL` for what they look like.

    Args:
        path: A folder with ``train.jsonl``, ``validation.jsonl`` and ``test.jsonl``, or a single file, which is then
            split.
        **kwargs: See :class:`MultipleChoiceDataModule`.
    """

    def __init__(self, path: str, **kwargs: Any) -> None:
        super().__init__(JSONL(path), **kwargs)


def _is_sentences(row: Row) -> bool:
    return "sentence1" in row or ("sentence" in row and "label" in row)


def _first(rows: Any) -> list[Any]:
    row = next(iter(rows), None)
    return [] if row is None else [row]


def _names(splits: tuple[str, ...]) -> str:
    return ", ".join(f"{split}.jsonl" for split in splits)
