"""AI2 Reasoning Challenge (Clark et al., 2018): grade-school science, three to five options."""

from __future__ import annotations

from typing import Any

from bayeslora.datamodules.multiple_choice import MultipleChoiceDataModule
from bayeslora.datamodules.question import Question, from_choices
from bayeslora.datamodules.registry import register
from bayeslora.datamodules.source import HubBenchmark, Row
from bayeslora.errors import require_choice

SIZES = {
    "ARC-Easy": {"train": 2251, "validation": 570, "test": 2376},
    "ARC-Challenge": {"train": 1119, "validation": 299, "test": 1172},
}


class ARC(HubBenchmark):
    """One of the two parts of ARC."""

    repository = "allenai/ai2_arc"
    task = "arc"

    def __init__(self, config: str) -> None:
        require_choice("config of ARC", config, SIZES)
        self.config = config
        self.name = config.lower().replace("-", "_")
        self.sizes = SIZES[config]

    def parse(self, row: Row, fallback_id: str) -> Question:
        """A question from a row."""
        return from_choices(row, fallback_id)


register("arc_easy", lambda: ARC("ARC-Easy"))
register("arc_challenge", lambda: ARC("ARC-Challenge"))


class ARCDataModule(MultipleChoiceDataModule):
    """ARC-Easy or ARC-Challenge (Clark et al., 2018, arXiv:1803.05457).

    Args:
        config: ``ARC-Easy`` or ``ARC-Challenge``.
        **kwargs: See :class:`MultipleChoiceDataModule`.

    Example:
        >>> from bayeslora import ARCDataModule
        >>> ARCDataModule("ARC-Challenge", labels=100).labels
        100
    """

    def __init__(self, config: str = "ARC-Easy", **kwargs: Any) -> None:
        super().__init__(ARC(config), **kwargs)
