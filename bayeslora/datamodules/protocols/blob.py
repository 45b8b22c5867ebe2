"""BLoB (Wang et al., 2024), as released: github.com/Wang-ML-Lab/bayesian-peft. TFB and C-LoRA use it too."""

from __future__ import annotations

from collections.abc import Sequence

from bayeslora.datamodules.protocols.base import LETTERS, Prompt, Protocol, Splits, letters
from bayeslora.datamodules.question import Question
from bayeslora.datamodules.source import Benchmark

TEMPLATE = "Return the label of the correct answer for the question below.\n\nQuestion: {}\n{}:\n{}\nAnswer:"
BOOLQ = (
    "Read the passage below and answer the question with the words 'true' or 'false'.\n\n"
    "Passage: {}\nQuestion: {}\nAnswer (true or false):"
)


class BLoB(Protocol):
    """Options on lines of their own, the hub's validation split as validation and test, the source's own order.

    Kept from the release: ARC and OpenBookQA show the text in front of the letter (and ARC's own marks, which may be
    digits), "Chioces" in OpenBookQA, five letters to choose from for every question of ARC, BoolQ's classes with
    "True" for no and "False" for yes (its passage cut to 1,024 characters), an end-of-sequence token behind the prompts
    of Winogrande and BoolQ, prompts cut on the right at 300 tokens, training data that are never shuffled, and a last
    batch that is dropped unless it is full, in testing too.
    """

    name = "blob"
    max_length = 300
    cut = "right"
    labels_from = "last"
    order = "sequential"
    drop_last = True
    tasks = ("arc", "obqa", "winogrande", "boolq", "mmlu")

    def prompt(self, task: str, question: Question) -> Prompt:
        """The text up to the answer slot."""
        if task == "boolq":
            return Prompt(BOOLQ.format(question.context[:1024], question.question))
        if task in ("arc", "obqa"):
            pairs = list(zip(question.options, question.marks, strict=True))
        else:
            pairs = list(zip(letters(question), question.options, strict=True))
        heading = "Chioces" if task == "obqa" else "Choices"
        return Prompt(TEMPLATE.format(question.question, heading, "\n".join(f"{a}) {b}" for a, b in pairs)))

    def labels(self, task: str, question: Question) -> Sequence[str]:
        """Letters, five for ARC, or the words of BoolQ."""
        if task == "boolq":
            return ("True", "False")
        return LETTERS[:5] if task == "arc" else super().labels(task, question)

    def ends_with_eos(self, task: str) -> bool:
        """Whether an end-of-sequence token follows the prompt."""
        return task in ("winogrande", "boolq")

    def splits(self, benchmark: Benchmark) -> Splits:
        """The validation split to validate and to test on; MMLU's test split."""
        if benchmark.task == "mmlu":
            return super().splits(benchmark)
        return Splits(benchmark.training, "validation", "validation")
