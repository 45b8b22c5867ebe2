"""All that turns a question into tokens, kept apart from the questions themselves, so that new ones can be asked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from bayeslora.datamodules.continuations import ContinuationEncoder
from bayeslora.datamodules.encode import LabelTokenEncoder
from bayeslora.datamodules.head import HeadEncoder
from bayeslora.datamodules.model_side import HEAD, LABEL_TOKEN
from bayeslora.datamodules.protocols import Protocol, get_protocol
from bayeslora.datamodules.question import Question
from bayeslora.datamodules.rows import Rows, in_orders
from bayeslora.datamodules.writer import ChatWriter, PromptWriter


@dataclass(frozen=True)
class Prompting:
    """How a run asks: what is saved with it, so that a new question is asked as its test questions were.

    Attributes:
        task: The benchmark's name among the protocol's tasks.
        protocol: Name of the protocol, or the whole of one's own.
        tokenizer: Name or folder of the tokenizer.
        revision: Of the tokenizer, on the hub.
        readout: ``label_token`` or ``head``.
        max_length: Longest row in tokens.
        pairs: Whether sentences, or pairs of them, are classified.
        chat: Whether prompts are put into the tokenizer's chat template.
        shots: Number of worked examples in front of each question.
        examples: The questions to choose them from.
        permutations: Number of orders of the options over which a prediction is averaged.
        options: The options that every question has; None where each has its own.
    """

    task: str
    protocol: str | dict[str, Any]
    tokenizer: str
    revision: str | None
    readout: str
    max_length: int
    pairs: bool = False
    chat: bool = False
    shots: int = 0
    examples: tuple[Question, ...] = ()
    permutations: int = 1
    options: tuple[str, ...] | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain values, from which :meth:`from_dict` makes the same."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Prompting:
        """From what :meth:`to_dict` gave, also after it has been through JSON."""
        examples = tuple(_question(example) for example in values["examples"])
        options = values["options"]
        return cls(**{**values, "examples": examples, "options": None if options is None else tuple(options)})

    def encoder(self, tokenizer: Any) -> LabelTokenEncoder | HeadEncoder:
        """What turns questions into tokens.

        Args:
            tokenizer: The tokenizer, loaded.
        """
        if self.readout == HEAD:
            return HeadEncoder(tokenizer, self.max_length, self.pairs)
        protocol = get_protocol(self.protocol)
        if self.chat:
            writer: PromptWriter = ChatWriter(protocol, self.task, self.examples, self.shots, tokenizer)
        else:
            writer = PromptWriter(protocol, self.task, self.examples, self.shots)
        kind = LabelTokenEncoder if protocol.end is None else ContinuationEncoder
        return kind(writer, tokenizer, self.max_length)

    def rows(self, questions: Sequence[Question], tokenizer: Any) -> Rows:
        """Questions as tokens for an evaluation, each in as many orders of its options as are averaged over.

        Args:
            questions: The questions.
            tokenizer: The tokenizer.
        """
        encoder = self.encoder(tokenizer)
        if self.permutations == 1:
            return Rows([[item] for item in encoder.encode(questions)])
        assert isinstance(encoder, LabelTokenEncoder)  # the data refuse permutations with a head
        return Rows(in_orders(questions, encoder, self.permutations))

    def padding_side(self, tokenizer: Any) -> str:
        """Where shorter rows of a batch are padded: before a prompt, whose last position answers."""
        return "left" if self.readout == LABEL_TOKEN else str(tokenizer.padding_side)


def allowed_length(protocol: Protocol, tokenizer: Any, positions: int | None) -> int:
    """Longest row in tokens where nobody asks for one.

    Args:
        protocol: It has a length of its own.
        tokenizer: The tokenizer, loaded, which may know of a shorter one.
        positions: How many positions the model has learned; None where it has no table of them.
    """
    allowed = (protocol.max_length, tokenizer.model_max_length, positions)
    return min(length for length in allowed if length is not None)


def common_options(questions: Sequence[Question]) -> tuple[str, ...] | None:
    """The options of all questions, where they are the same for all."""
    found = {question.options for question in questions}
    return found.pop() if len(found) == 1 else None


def _question(values: Mapping[str, Any]) -> Question:
    probs = values["true_probs"]
    listed = {name: tuple(values[name]) for name in ("options", "marks")}
    return Question(**{**values, **listed, "true_probs": None if probs is None else tuple(probs)})
