"""What a protocol fixes: prompt, splits, option filter, label tokens, truncation and the support of the loss."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from bayeslora.datamodules.question import LETTERS, Question
from bayeslora.datamodules.sampler import Order
from bayeslora.datamodules.source import Benchmark
from bayeslora.errors import UsageError

Support = Literal["options", "options_and_rest", "full_vocab"]
Words = str | tuple[str, ...] | Mapping[str, str]
PROTOCOLS = {
    "default": "Default",
    "laplace_lora": "LaplaceLoRA",
    "laplace_lora_val": "LaplaceLoRAVal",
    "swag_lora": "SWAGLoRA",
    "blob": "BLoB",
    "lora_ensembles": "LoRAEnsembles",
}


@dataclass(frozen=True)
class Prompt:
    """The text up to the answer slot.

    Attributes:
        text: The whole prompt.
        spans: Character ranges that may lose their front where the prompt is too long, the first to go first.
    """

    text: str
    spans: tuple[tuple[int, int], ...] = ()

    def moved_into(self, text: str, start: int) -> Prompt:
        """The same spans within a text that holds this one from character ``start`` on (none where start is -1).

        Args:
            text: The longer text.
            start: Where in it this prompt begins, in characters.
        """
        return Prompt(text, tuple((a + start, b + start) for a, b in self.spans) if start >= 0 else ())


@dataclass(frozen=True)
class Splits:
    """Which splits of a benchmark serve what.

    Attributes:
        train: Trained on, one after the other.
        validation: None takes a fifth of ``train``.
        test: Tested on.
        in_order: Take that fifth from the end of ``train``, not at random by the seed.
    """

    train: tuple[str, ...]
    validation: str | None
    test: str
    in_order: bool = False


class Protocol(ABC):
    """The conventions under which a benchmark is trained on and tested; each protocol is a subclass in its own file.

    Attributes:
        name: As given on the command line.
        support: What the training loss normalises over: the options' labels, those and all the rest as one more
            outcome, or the whole vocabulary.
        max_length: Number of tokens of the longest prompt, unless the user says otherwise.
        cut: Where an over-long prompt loses tokens: at the ``front`` of its spans, or on the ``right``.
        labels_from: How label tokens are found: ``context`` (the one token that follows the prompt), or the ``first``
            or ``last`` token of the label on its own.
        separator: Between prompt and label.
        system: An instruction in front of everything, worked examples included.
        end: What ends a label of several tokens; None where labels are one token each.
        normalise: What the log-probability of such a label is divided by: None, its ``tokens`` or its ``characters``.
        order: Of the batches.
        drop_last: Whether a last batch that is not full is left out, in training and in evaluation.
        tasks: The tasks it defines prompts for; None is any.
        extensible: Whether worked examples, a chat template and other orders of the options may be added to it.
    """

    name: str
    support: Support = "options"
    max_length: int = 1024
    cut: Literal["front", "right"] = "front"
    labels_from: Literal["context", "first", "last"] = "context"
    separator: str = " "
    system: str = ""
    end: str | None = None
    normalise: str | None = None
    order: Order = "bucketed"
    drop_last: bool = False
    tasks: tuple[str, ...] | None = None
    extensible: ClassVar[bool] = False

    @abstractmethod
    def prompt(self, task: str, question: Question) -> Prompt:
        """The text up to the answer slot.

        Args:
            task: Name of the task, for example ``obqa``.
            question: The question.
        """

    def labels(self, task: str, question: Question) -> Sequence[str]:
        """The label of each answer, as text; its token is what the model is to predict.

        Args:
            task: Name of the task, for example ``obqa``.
            question: The question.
        """
        return letters(question)

    def saved(self) -> str | dict[str, Any]:
        """What a run keeps of it, from which ``get_protocol`` makes the same: its name, or all of it."""
        return self.name

    def refuse_other_orders(self, what: str) -> None:  # noqa: B027 - most have nothing to refuse
        """Refuse to show options in other orders where that makes no sense; ``what`` asked for it."""

    def ends_with_eos(self, task: str) -> bool:
        """Whether an end-of-sequence token follows the prompt."""
        return False

    def keeps(self, task: str, question: Question) -> bool:
        """Whether the protocol uses the question.

        Args:
            task: Name of the task, for example ``obqa``.
            question: The question.
        """
        return True

    def splits(self, benchmark: Benchmark) -> Splits:
        """The public test split where it has labels; else validation as test and a fifth of train as validation."""
        has = set(benchmark.labelled)
        validation = "validation" if "validation" in has - set(benchmark.training) else None
        if "test" in has:
            return Splits(benchmark.training, validation, "test")
        return Splits(benchmark.training, None, "validation")

    def check_task(self, task: str) -> None:
        """Refuse a task the protocol does not define."""
        if self.tasks is not None and task not in self.tasks:
            raise UsageError(
                f"protocol {self.name!r} does not define the task {task!r}; allowed with it: {', '.join(self.tasks)}; "
                "protocol 'default' allows every task"
            )


def letters(question: Question) -> str:
    """A letter for every option, from A on.

    Raises:
        UsageError: more options than letters.
    """
    if len(question.options) > len(LETTERS):
        raise UsageError(
            f"question {question.id!r} has {len(question.options)} options, letters are there for {len(LETTERS)}; "
            "leave options out, or split the question"
        )
    return LETTERS[: len(question.options)]
