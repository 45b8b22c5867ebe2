"""MMLU (Hendrycks et al., 2021): 57 subjects, four options; trained on dev and validation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bayeslora.datamodules.mmlu_subjects import DEV, GROUPS, SIZES
from bayeslora.datamodules.multiple_choice import MultipleChoiceDataModule
from bayeslora.datamodules.question import Question
from bayeslora.datamodules.registry import register_family
from bayeslora.datamodules.source import Benchmark, HubBenchmark, Row
from bayeslora.errors import UsageError


class Subject(HubBenchmark):
    """A single subject."""

    repository = "cais/mmlu"
    task = "mmlu"

    def __init__(self, subject: str) -> None:
        self.config = self.name = subject
        test, validation = SIZES[subject]
        self.sizes = {"dev": DEV, "validation": validation, "test": test}

    def parse(self, row: Row, fallback_id: str) -> Question:
        """A question from a row."""
        return Question(f"{self.config}/{fallback_id}", row["question"], tuple(row["choices"]), row["answer"])


class MMLU(Benchmark):
    """Any subjects, one after the other.

    Args:
        subjects: Names of subjects and of groups of them.
    """

    task = "mmlu"
    training = ("dev", "validation")

    def __init__(self, subjects: Sequence[str]) -> None:
        if not subjects:
            raise UsageError(f"subjects is empty; allowed: {_allowed()}")
        for name in subjects:
            if name not in SIZES and name not in GROUPS:
                raise UsageError(f"subject of MMLU is {name!r}; allowed: {_allowed()}")
        names = [subject for name in subjects for subject in GROUPS.get(name, (name,))]
        self.subjects = [Subject(name) for name in dict.fromkeys(names)]
        self.name = "mmlu:" + "+".join(subjects)
        splits = ("dev", "validation", "test")
        self.sizes = {split: sum(subject.sizes[split] for subject in self.subjects) for split in splits}

    def load(self, split: str, data_dir: str | None) -> list[Question]:
        """All questions of a split."""
        return [question for subject in self.subjects for question in subject.load(split, data_dir)]


register_family("mmlu", lambda subjects: MMLU(subjects.split("+")), "subject or group, several with +")


class MMLUDataModule(MultipleChoiceDataModule):
    """MMLU (Hendrycks et al., 2021, arXiv:2009.03300).

    Args:
        subjects: Names of subjects, and of the groups ``stem``, ``social_sciences``, ``cs``, ``eng``, ``law``,
            ``health``, ``chemistry``, ``physics`` and ``all``.
        **kwargs: See :class:`MultipleChoiceDataModule`.

    Example:
        >>> from bayeslora import MMLUDataModule
        >>> MMLUDataModule(["law"], labels=100).labels
        100
    """

    def __init__(self, subjects: list[str], **kwargs: Any) -> None:
        super().__init__(MMLU(subjects), **kwargs)


def _allowed() -> str:
    return f"the groups {', '.join(GROUPS)}, and the subjects {', '.join(SIZES)}"
