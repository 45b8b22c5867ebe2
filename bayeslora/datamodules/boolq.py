"""BoolQ (Clark et al., 2019): yes or no, given a passage; no public test labels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bayeslora.datamodules.multiple_choice import MultipleChoiceDataModule
from bayeslora.datamodules.question import Question
from bayeslora.datamodules.registry import register
from bayeslora.datamodules.source import HubBenchmark, Row


class BoolQ(HubBenchmark):
    """BoolQ with its passages; the options are no and yes, in this order."""

    repository = "google/boolq"
    name = "boolq"
    task = "boolq"
    sizes: Mapping[str, int] = {"train": 9427, "validation": 3270}

    def parse(self, row: Row, fallback_id: str) -> Question:
        """A question from a row."""
        if not isinstance(row["answer"], bool):
            raise ValueError(f"answer {row['answer']!r} is not true or false")
        return Question(fallback_id, row["question"], ("No", "Yes"), int(row["answer"]), context=row["passage"])


register("boolq", BoolQ)


class BoolQDataModule(MultipleChoiceDataModule):
    """BoolQ (Clark et al., 2019, arXiv:1905.10044).

    Args:
        **kwargs: See :class:`MultipleChoiceDataModule`.

    Example:
        >>> from bayeslora import BoolQDataModule
        >>> BoolQDataModule(labels=100).labels
        100
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(BoolQ(), **kwargs)
