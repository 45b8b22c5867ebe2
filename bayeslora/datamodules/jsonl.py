"""Questions from your own JSONL files."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_warn

from bayeslora.datamodules.multiple_choice import MultipleChoiceDataModule
from bayeslora.datamodules.question import Question, from_choices, from_options, from_sentences, has_sentences
from bayeslora.datamodules.registry import register_family
from bayeslora.datamodules.sampler import permutation
from bayeslora.datamodules.source import Benchmark, Row, json_lines, read_jsonl
from bayeslora.datamodules.splits import CALIBRATION
from bayeslora.errors import UsageError

SPLITS = ("train", "validation", "test")
MOST_CLASSES = 1000


class JSONL(Benchmark):
    """A folder with ``train.jsonl``, ``validation.jsonl`` and ``test.jsonl``, or a single file.

    A file ``calibration.jsonl`` beside them is the part on which decision rules are fitted.

    A fifth of a single file, always the same one, is the test split; the rest is trained on. A folder that holds
    ``test.jsonl`` alone, or a single file of another name, is a test set as a whole.

    Each line is ``{"id", "question", "choices": {"text": [..], "label": [..]}, "answerKey"}`` as on the hub,
    ``{"id", "question", "choices": [..], "answer": int or letter}`` as MMLU's, ``{"id", "question", "options": [..],
    "label": int}``, or, to classify sentences or pairs of them, ``{"id", "sentence1", "sentence2", "label"}`` or
    ``{"id", "sentence", "label"}``, the label being a class's name or number. ``context`` may stand beside a question.
    Questions of a test set may lack their label (missing, null, empty or -1): they can be predicted, not tested on.

    Args:
        path: The folder or file.
        whole: Take a single file as a test split and leave it whole.
        classes: Names of the classes of sentences, in the order of their numbers. None takes the names that are the
            labels, sorted, or else the numbers themselves.
    """

    task = "jsonl"

    def __init__(self, path: str, whole: bool = False, classes: Sequence[str] | None = None) -> None:
        self.path, self.whole, self.given = Path(path), whole, None if classes is None else tuple(classes)
        # Not the whole path: results do not depend on where files lie.
        self.name = f"jsonl:{self.path.stem}"
        if not self.path.exists():
            raise UsageError(f"path {path} does not exist; give a JSONL file or a folder with {_names(SPLITS)}")
        if self.given is not None and len({*self.given}) < max(2, len(self.given)):
            raise UsageError(f"classes are {list(self.given)}; allowed: two names or more, each once")
        inside = sorted(self.path.glob("*.jsonl")) if self.path.is_dir() else []
        if len(inside) == 1 and inside[0].stem not in (*SPLITS, CALIBRATION):
            self.path, self.whole = inside[0], True

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

    def take_classes(self, other: Benchmark) -> None:
        """See :meth:`Benchmark.take_classes`."""
        if self.given is None and isinstance(other, JSONL) and other.pairs:
            self.given = other._classes
            self.__dict__.pop("_classes", None)

    def parse(self, row: Row, fallback_id: str) -> Question:
        """A question from a row of any of the schemas.

        Args:
            row: A line of the file.
            fallback_id: Its id where the row has none.
        """
        if self._classes and has_sentences(row):
            return from_sentences(row, self._classes, fallback_id)
        return from_choices(row, fallback_id) if "choices" in row else from_options(row, fallback_id)

    def load(self, split: str, data_dir: str | None) -> list[Question]:
        """All questions of a split; ``data_dir`` is not looked at."""
        if self.path.is_dir():
            return read_jsonl(self.path / f"{split}.jsonl", self.parse, split, labelled=split != "test")
        questions = read_jsonl(self.path, self.parse, self.path.stem, labelled=not self.whole)
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
        if not all(has_sentences(row) for _, row in _first(json_lines(files[0]))):
            return ()
        if self.given is not None:
            return self.given
        numbers, names = 0, set()
        for where, row in (line for file in files for line in json_lines(file)):
            label = row.get("label")
            if type(label) is int and label >= MOST_CLASSES:
                raise UsageError(f"{where}: label {label} is not a class; allowed: 0 to {MOST_CLASSES - 1}, from 0 on")
            if type(label) is int:
                numbers = max(numbers, label + 1)
            elif isinstance(label, str) and label:
                names.add(label)
            if names and (numbers or len(names) > MOST_CLASSES):
                raise UsageError(
                    f"{where}: label {label!r} is not a class; allowed: numbers alone or names alone (or numbers, and "
                    f"classes to name them), at most {MOST_CLASSES} classes"
                )
        if not names and not numbers:
            raise UsageError(f"{self.path}: no sentence has a label, so that the classes are not known; give classes")
        return tuple(sorted(names)) or tuple(str(i) for i in range(numbers))


register_family("jsonl", lambda path: JSONL(path, whole=True), "path")


class JSONLDataModule(MultipleChoiceDataModule):
    """Questions from your own files, see :class:`JSONL` for what they look like.

    Args:
        path: A folder with ``train.jsonl``, ``validation.jsonl`` and ``test.jsonl``, or a single file, which is then
            split.
        whole: Take a single file as a test set and leave it whole, to test or predict without training on it.
        classes: Names of the classes of sentences, in the order of their numbers.
        **kwargs: See :class:`MultipleChoiceDataModule`.

    Example:
        >>> import json, tempfile
        >>> from pathlib import Path
        >>> from bayeslora import JSONLDataModule
        >>> row = {"id": "q", "question": "Which is a fruit?", "options": ["an apple", "a chair"], "label": 0}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     for split in ("train", "validation", "test"):
        ...         rows = (json.dumps({**row, "id": f"{split}{k}", "question": f"{split} {k}?"}) for k in range(10))
        ...         _ = (Path(folder) / f"{split}.jsonl").write_text(chr(10).join(rows))
        ...     data = JSONLDataModule(folder)
        ...     data.setup("fit")
        ...     len(data.train_questions)
        10
    """

    def __init__(self, path: str, whole: bool = False, classes: list[str] | None = None, **kwargs: Any) -> None:
        self.file = JSONL(path, whole, classes)
        super().__init__(self.file, **kwargs)

    def setup(self, stage: str) -> None:
        """See :meth:`MultipleChoiceDataModule.setup`; says so where a test takes a part of a file only."""
        super().setup(stage)
        if stage == "test" and not self.file.whole and self.file.path.is_file():
            rank_zero_warn(
                f"testing on {len(self.questions(self.file.name))} questions of {self.file.path}, the fifth that is "
                "never trained on; whole=True (--data.init_args.whole true) takes them all"
            )


def _first(rows: Any) -> list[Any]:
    row = next(iter(rows), None)
    return [] if row is None else [row]


def _names(splits: tuple[str, ...]) -> str:
    return ", ".join(f"{split}.jsonl" for split in splits)
