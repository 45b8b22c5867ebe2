"""WinoGrande (Sakaguchi et al., 2020): which of two names fills the gap, no public test labels."""

from __future__ import annotations

from typing import Any

from bayeslora.datamodules.multiple_choice import MultipleChoiceDataModule
from bayeslora.datamodules.question import Question
from bayeslora.datamodules.registry import register
from bayeslora.datamodules.source import HubBenchmark, Row
from bayeslora.errors import require_choice

TRAIN_SIZES = {"s": 640, "m": 2558}
ANSWERS = ("1", "2")


class WinoGrande(HubBenchmark):
    """One of the training sizes of WinoGrande; the validation split is the same for all."""

    repository = "allenai/winogrande"
    task = "winogrande"

    def __init__(self, size: str) -> None:
        require_choice("size of WinoGrande", size, TRAIN_SIZES)
        self.config = self.name = f"winogrande_{size}"
        self.sizes = {"train": TRAIN_SIZES[size], "validation": 1267}

    def parse(self, row: Row, fallback_id: str) -> Question:
        """A question from a row."""
        if row["answer"] not in ANSWERS:
            raise ValueError(f"answer {row['answer']!r} is not among the options {ANSWERS}")
        return Question(
            fallback_id, row["sentence"], (row["option1"], row["option2"]), ANSWERS.index(row["answer"]), marks=ANSWERS
        )


register("winogrande_s", lambda: WinoGrande("s"))
register("winogrande_m", lambda: WinoGrande("m"))


class WinoGrandeDataModule(MultipleChoiceDataModule):
    """WinoGrande (Sakaguchi et al., 2020, arXiv:1907.10641).

    Args:
        size: Of the training set: ``s`` (640) or ``m`` (2,558).
        **kwargs: See :class:`MultipleChoiceDataModule`.

    Example:
        >>> from bayeslora import WinoGrandeDataModule
        >>> WinoGrandeDataModule(labels=100).labels
        100
    """

    def __init__(self, size: str = "s", **kwargs: Any) -> None:
        super().__init__(WinoGrande(size), **kwargs)
