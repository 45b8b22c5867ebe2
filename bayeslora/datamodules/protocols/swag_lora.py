"""SWAG-LoRA (Onal et al., 2024), as released: github.com/fortuinlab/swag-lora."""

from __future__ import annotations

from bayeslora.datamodules.protocols.base import Prompt, Protocol, Splits, letters
from bayeslora.datamodules.protocols.laplace_lora import capitalise, select_one, sentence
from bayeslora.datamodules.question import Question
from bayeslora.datamodules.source import Benchmark


class SWAGLoRA(Protocol):
    """Laplace-LoRA's prompt with options capitalised, and closed by a full stop in OpenBookQA and MMLU alone.

    Kept from the release: questions with other than four options are left out of ARC, its test split included.
    Splits are the official ones; CommonsenseQA is tested on its validation split and validated on a fifth of train.
    Not kept: the release sets no padding side, so that it may read the answer at padding, and predictions then depend
    on what else is in a batch.
    """

    name = "swag_lora"
    max_length = 4096
    cut = "right"
    labels_from = "first"
    order = "shuffled"
    tasks = ("arc", "obqa", "csqa", "mmlu")

    def prompt(self, task: str, question: Question) -> Prompt:
        """The text up to the answer slot."""
        tidy = sentence if task in ("obqa", "mmlu") else capitalise
        options = " ".join(f"{x}. {tidy(o)}" for x, o in zip(letters(question), question.options, strict=True))
        return select_one(question.question, options)

    def keeps(self, task: str, question: Question) -> bool:
        """ARC's questions with four options, and everything else."""
        return task != "arc" or len(question.options) == 4

    def splits(self, benchmark: Benchmark) -> Splits:
        """The official splits; for MMLU dev, validation and test."""
        return Splits(("dev",), "validation", "test") if benchmark.task == "mmlu" else super().splits(benchmark)
