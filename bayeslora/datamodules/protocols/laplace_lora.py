"""Laplace-LoRA (Yang et al., 2024), as released: github.com/adamxyang/laplace-lora."""

from __future__ import annotations

from collections.abc import Sequence

from bayeslora.datamodules.protocols.base import Prompt, Protocol, Splits, letters
from bayeslora.datamodules.question import Question
from bayeslora.datamodules.source import Benchmark


class LaplaceLoRA(Protocol):
    """One line per prompt, options closed by a full stop, the hub's validation split as validation and test.

    Kept from the release: questions with other than four options are left out of ARC, prompts are cut on the right at
    300 tokens (which may take the options), Winogrande's second option has no stop behind its letter, and BoolQ is read
    behind an end-of-sequence token. Its MMLU prompt is not public; ARC's is used.
    """

    name = "laplace_lora"
    max_length = 300
    cut = "right"
    labels_from = "first"
    order = "shuffled"
    tasks = ("arc", "obqa", "winogrande", "boolq", "mmlu")

    def prompt(self, task: str, question: Question) -> Prompt:
        """The text up to the answer slot."""
        if task == "boolq":
            text = f"Answer the question with only True or False: {question.question} Context: {question.context}"
            return Prompt(text)
        if task == "winogrande":
            options = "A. {}. B {}.".format(*question.options)
        else:
            options = " ".join(f"{x}. {sentence(o)}" for x, o in zip(letters(question), question.options, strict=True))
        return select_one(question.question, options)

    def labels(self, task: str, question: Question) -> Sequence[str]:
        """Letters, or the words of BoolQ."""
        return ("False", "True") if task == "boolq" else super().labels(task, question)

    def ends_with_eos(self, task: str) -> bool:
        """Whether an end-of-sequence token follows the prompt."""
        return task == "boolq"

    def keeps(self, task: str, question: Question) -> bool:
        """ARC's questions with four options, and everything else."""
        return task != "arc" or len(question.options) == 4

    def splits(self, benchmark: Benchmark) -> Splits:
        """The validation split to validate and to test on; MMLU's test split."""
        if benchmark.task == "mmlu":
            return super().splits(benchmark)
        return Splits(benchmark.training, "validation", "validation")


def select_one(question: str, options: str) -> Prompt:
    """The prompt that this release and SWAG-LoRA's share.

    Args:
        question: The question's text.
        options: The options with their labels, as one text.
    """
    text = f"Select one of the choices that answers the following question: {question} Choices: {options} Answer:"
    return Prompt(text)


def capitalise(option: str) -> str:
    """An option with its first letter in upper case."""
    return option[:1].upper() + option[1:]


def sentence(option: str) -> str:
    """An option with a capital in front and a full stop behind."""
    return capitalise(option if option.endswith(".") else f"{option}.")
