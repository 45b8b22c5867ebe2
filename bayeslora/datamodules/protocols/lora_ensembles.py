"""LoRA ensembles (Balabanov & Linander, 2024), as released: github.com/oleksandr-balabanov/equivariant-posteriors."""

from __future__ import annotations

from collections.abc import Sequence

from bayeslora.datamodules.protocols.base import LETTERS, Prompt, Protocol, Splits, letters
from bayeslora.datamodules.question import Question
from bayeslora.datamodules.source import Benchmark


class LoRAEnsembles(Protocol):
    """Lower-case letters in brackets, the loss over the whole vocabulary, validation and test on the same split.

    Kept from the release: MMLU trains on dev and validation and is scored over five letters though it has four
    options; prompts are cut on the right at 512 tokens, two of which belong to the answer. Not kept: a cut prompt's
    target is whatever token stands last but one there; here it is the right letter.
    """

    name = "lora_ensembles"
    support = "full_vocab"
    max_length = 510
    cut = "right"
    separator = ""
    order = "shuffled"
    tasks = ("csqa", "mmlu")

    def prompt(self, task: str, question: Question) -> Prompt:
        """The text up to the answer slot."""
        options = "".join(f"({x}) {o}\n" for x, o in zip(letters(question).lower(), question.options, strict=True))
        return Prompt(f"Q: {question.question}\nAnswer Choices:\n{options}A: (")

    def labels(self, task: str, question: Question) -> Sequence[str]:
        """Five letters, whatever the number of options."""
        return LETTERS[:5].lower()

    def splits(self, benchmark: Benchmark) -> Splits:
        """The split that is tested on is the one validated on."""
        test = "test" if benchmark.task == "mmlu" else "validation"
        return Splits(benchmark.training, test, test)
