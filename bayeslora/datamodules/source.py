"""Where questions come from: local JSONL files, or the Hugging Face hub."""

from __future__ import annotations

import codecs
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

from bayeslora.datamodules.question import Question
from bayeslora.errors import UsageError

Row = Mapping[str, Any]
Parse = Callable[[Row, str], Question]


class Benchmark(ABC):
    """One set of questions: its splits and what protocols know it as.

    Attributes:
        name: Name of its test set in results, such as ``arc_easy``.
        task: What protocols know it as, such as ``arc``.
        sizes: Published number of questions of each split that has public labels; empty where it is not published.
        training: The splits that are trained on.
    """

    name: str
    task: str
    sizes: Mapping[str, int] = {}
    training: tuple[str, ...] = ("train",)

    @property
    def labelled(self) -> tuple[str, ...]:
        """The splits with public labels."""
        return tuple(self.sizes)

    @property
    def pairs(self) -> bool:
        """Whether each question is a sentence or a pair of them to classify, rather than options to compare."""
        return False

    def take_classes(self, other: Benchmark) -> None:  # noqa: B027 - most have none
        """Take the classes of sentences from another benchmark, whose head answers these too, unless some were given.

        Args:
            other: The other benchmark.
        """

    @abstractmethod
    def load(self, split: str, data_dir: str | None) -> list[Question]:
        """All questions of a split.

        Args:
            split: One of ``labelled``.
            data_dir: Folder with files laid out as on the hub; None asks the hub.

        Raises:
            UsageError: a file that is missing or corrupt, no network, or a size that is not the published one.
        """

    def download(self) -> None:
        """Bring all splits from the hub into the local cache."""
        for split in self.labelled:
            self.load(split, None)


class HubBenchmark(Benchmark):
    """A benchmark that is published as a dataset of the Hugging Face hub; splits of other sizes are refused.

    Attributes:
        repository: The dataset, ``owner/name``.
        config: Its configuration; None where it has one only.
    """

    repository: ClassVar[str]
    config: str | None = None

    @property
    def folder(self) -> str:
        """Where its files lie below ``data_dir``."""
        return "/".join(filter(None, (self.repository.split("/")[-1], self.config)))

    @abstractmethod
    def parse(self, row: Row, fallback_id: str) -> Question:
        """A question from a row of the source; a ValueError or KeyError says what is wrong with the row.

        Args:
            row: The row, as a mapping of its columns.
            fallback_id: The id of a row that has none.
        """

    def load(self, split: str, data_dir: str | None) -> list[Question]:
        """See :meth:`Benchmark.load`."""
        questions = read_source(self.repository, self.config, self.folder, split, data_dir, self.parse)
        if len(questions) != self.sizes[split]:
            where = f"{data_dir}/{self.folder}" if data_dir else self.repository
            raise UsageError(
                f"{where}, split {split!r}: {len(questions)} questions, published are {self.sizes[split]}; give the "
                "published files, or use JSONLDataModule for files of your own"
            )
        return questions


def read_source(
    repository: str, config: str | None, folder: str, split: str, data_dir: str | None, parse: Parse
) -> list[Question]:
    """The questions of one split, from ``data_dir/folder/split.jsonl`` or else from the hub.

    Args:
        repository: Its name on the hub, ``owner/name``.
        config: The name of a configuration of the dataset; None for the only one.
        folder: Name of the benchmark's folder in ``data_dir``.
        split: ``train``, ``validation`` or ``test``, as the source names it.
        data_dir: Folder of local JSONL files; None takes the hub.
        parse: Makes a question of a row.
    """
    if data_dir is not None:
        return read_jsonl(Path(data_dir) / folder / f"{split}.jsonl", parse, split)
    rows = ((f"{repository}, {split} row {i}", row) for i, row in enumerate(hub_rows(repository, config, split)))
    return _parse_all(rows, parse, split)


def read_jsonl(path: Path, parse: Parse, split: str, labelled: bool = False) -> list[Question]:
    """The questions of a JSONL file.

    Args:
        path: The file.
        parse: Makes a question of a row.
        split: Names questions that have no id.
        labelled: Whether every question must have a label.

    Raises:
        UsageError: the file's name and the number of the line that is wrong.
    """
    if not path.is_file():
        raise UsageError(f"{path} does not exist; data_dir (or path) must be a folder that holds it")
    questions = _parse_all(json_lines(path), parse, split, labelled)
    if not questions:
        raise UsageError(f"{path} holds no question; it must have one JSON object a line")
    return questions


def json_lines(path: Path) -> Iterator[tuple[str, Row]]:
    """Where it stands, and content, of each line that is not blank; a UsageError names one that is no JSON object."""
    with path.open("rb") as file:
        if file.peek(2)[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
            raise UsageError(f"{path} is encoded in UTF-16; allowed: UTF-8 (iconv -f UTF-16 -t UTF-8 converts it)")
        for number, line in enumerate(file, start=1):
            where = f"{path}, line {number}"
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except RecursionError:
                raise UsageError(f"{where}: brackets are nested too deeply; each line must be a JSON object") from None
            except ValueError as error:  # wrong JSON, or bytes that are no text
                raise UsageError(f"{where}: not valid JSON ({error})") from error
            if not isinstance(row, dict):
                raise UsageError(f"{where}: a {type(row).__name__}; each line must be a JSON object")
            yield where, row


def _parse_all(rows: Iterable[tuple[str, Row]], parse: Parse, split: str, labelled: bool = False) -> list[Question]:
    questions: list[Question] = []
    seen: dict[str, str] = {}
    for where, row in rows:
        try:
            question = parse(row, f"{split}/{len(questions)}")
        except KeyError as error:
            raise UsageError(f"{where}: field {error} is missing; given are {', '.join(row)}") from error
        except (ValueError, TypeError) as error:
            raise UsageError(f"{where}: {error}") from error
        if labelled and not question.labelled:
            raise UsageError(f"{where}: question {question.id!r} has no label; only a test set may lack them")
        if question.id in seen:
            raise UsageError(f"{where}: id {question.id!r} is taken already by {seen[question.id]}; ids must be unique")
        seen[question.id] = where
        questions.append(question)
    return questions


def hub_rows(repository: str, config: str | None, split: str) -> Iterable[Row]:
    """The rows of a split of a dataset on the Hugging Face hub, or in its local cache.

    Args:
        repository: Its name on the hub, ``owner/name``.
        config: The name of a configuration of the dataset; None for the only one.
        split: ``train``, ``validation`` or ``test``, as the source names it.
    """
    import datasets

    try:
        return datasets.load_dataset(repository, config, split=split)
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UsageError(
            f"cannot load {repository} from the hub or the local cache ({reason}); give data_dir a folder with its "
            "JSONL files, or download it once with network and then set HF_HUB_OFFLINE=1, HF_DATASETS_OFFLINE=1 "
            "and HF_HOME to that cache"
        ) from error
