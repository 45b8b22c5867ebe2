"""OpenBookQA (Mihaylov et al., 2018): elementary science, four options, without the open book."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bayeslora.datamodules.multiple_choice import MultipleChoiceDataModule
from bayeslora.datamodules.question import Question, from_choices
from bayeslora.datamodules.registry import register
from bayeslora.datamodules.source import HubBenchmark, Row


class OpenBookQA(HubBenchmark):
    """The main part of OpenBookQA."""

    repository = "allenai/openbookqa"
    config = "main"
    name = "obqa"
    task = "obqa"
    sizes: Mapping[str, int] = {"train": 4957, "validation": 500, "test": 500}

    def parse(self, row: Row, fallback_id: str) -> Question:
        """A question from a row."""
        return from_choices(row, fallback_id)


register("obqa", OpenBookQA)


class OpenBookQADataModule(MultipleChoiceDataModule):
    """OpenBookQA (Mihaylov et al., 2018, arXiv:1809.02789).

    Args:
        **kwargs: See :class:`MultipleChoiceDataModule`.

    Example:
        >>> from bayeslora import OpenBookQADataModule
        >>> OpenBookQADataModule(labels=100).labels
        100
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(OpenBookQA(), **kwargs)
