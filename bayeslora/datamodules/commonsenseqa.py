"""CommonsenseQA (Talmor et al., 2019): five options, no public test labels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bayeslora.datamodules.multiple_choice import MultipleChoiceDataModule
from bayeslora.datamodules.question import Question, from_choices
from bayeslora.datamodules.registry import register
from bayeslora.datamodules.source import HubBenchmark, Row


class CommonsenseQA(HubBenchmark):
    """CommonsenseQA 1.11."""

    repository = "tau/commonsense_qa"
    name = "csqa"
    task = "csqa"
    sizes: Mapping[str, int] = {"train": 9741, "validation": 1221}

    def parse(self, row: Row, fallback_id: str) -> Question:
        """A question from a row."""
        return from_choices(row, fallback_id)


register("csqa", CommonsenseQA)


class CommonsenseQADataModule(MultipleChoiceDataModule):
    """CommonsenseQA (Talmor et al., 2019, arXiv:1811.00937).

    Args:
        **kwargs: See :class:`MultipleChoiceDataModule`.

    Example:
        >>> from bayeslora import CommonsenseQADataModule
        >>> CommonsenseQADataModule(labels=100).labels
        100
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(CommonsenseQA(), **kwargs)
