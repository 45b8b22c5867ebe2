"""The synthetic benchmark: questions whose true answer distribution is known."""

from __future__ import annotations

from typing import Any

from bayeslora.datamodules.multiple_choice import MultipleChoiceDataModule
from bayeslora.datamodules.question import Question
from bayeslora.datamodules.registry import register, register_family
from bayeslora.datamodules.source import Benchmark
from bayeslora.errors import require_choice

TEST_SPLITS = ("test", "shifted", "ood", "easy", "noisy", "hard")


class Synthetic(Benchmark):
    """Training questions and one of the test sets.

    Args:
        test: ``test`` (in distribution), ``shifted``, ``ood``, ``easy``, ``noisy`` or ``hard``.
    """

    task = "synthetic"

    def __init__(self, test: str = "test") -> None:
        require_choice("synthetic set", test, TEST_SPLITS)
        self.test = test
        self.name = "synthetic" if test == "test" else f"synthetic:{test}"

    @property
    def labelled(self) -> tuple[str, ...]:
        """The splits there are."""
        return ("train", "test")

    def load(self, split: str, data_dir: str | None) -> list[Question]:
        """All questions of a split; ``data_dir`` is not looked at."""
        from bayeslora.datamodules import synthetic_process

        made = synthetic_process.questions(self.test if split == "test" else split)
        return [Question(q.id, q.question, tuple(q.options), q.label, true_probs=tuple(q.true_probs)) for q in made]

    def download(self) -> None:
        """Nothing is to be downloaded."""


register("synthetic", Synthetic)
register_family("synthetic", Synthetic, "shifted, ood, easy, noisy or hard")


class SyntheticDataModule(MultipleChoiceDataModule):
    """The synthetic benchmark in the package.

    Args:
        **kwargs: See :class:`MultipleChoiceDataModule`.

    Example:
        >>> from bayeslora import SyntheticDataModule
        >>> data = SyntheticDataModule(labels=20, batch_size=4, max_test=8)
        >>> data.setup("fit")
        >>> len(data.train_questions)
        16
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(Synthetic(), **kwargs)
