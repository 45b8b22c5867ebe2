"""Questions as rows of tokens: label tokens behind a prompt for causal models, pairs for encoders."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from bayeslora.datamodules.protocols import Prompt, Protocol
from bayeslora.datamodules.question import Question
from bayeslora.datamodules.tokenizer import LabelTokens, leading_specials, token_ids
from bayeslora.errors import UsageError


@dataclass(frozen=True)
class Encoded:
    """One question as tokens.

    Attributes:
        rows: Token ids of each row.
        types: Segment ids of each row, for tokenizers that give them.
        answers: Vocabulary id of each answer's label; zeros where options are not label tokens.
        label: Index of the right answer.
        cut: Whether tokens were lost to ``max_length``.
    """

    rows: tuple[list[int], ...]
    types: tuple[list[int], ...] | None
    answers: tuple[int, ...]
    label: int
    cut: bool = False

    @property
    def length(self) -> int:
        """Tokens of the longest row."""
        return max(map(len, self.rows))


class LabelTokenEncoder:
    """One row a question: the prompt, whose last position is to predict the label's token.

    Args:
        protocol: Fixes prompt and labels.
        task: The benchmark's name among the protocol's tasks.
        tokenizer: A Hugging Face tokenizer.
        max_length: Longest row, special tokens included.
    """

    padding_side = "left"

    def __init__(self, protocol: Protocol, task: str, tokenizer: Any, max_length: int) -> None:
        self.protocol, self.task, self.tokenizer, self.max_length = protocol, task, tokenizer, max_length
        self.labels = LabelTokens(tokenizer, protocol.labels_from, protocol.separator)
        self.prefix = leading_specials(tokenizer)
        self.suffix = [tokenizer.eos_token_id] if protocol.ends_with_eos(task) else []

    def encode(self, questions: Sequence[Question]) -> list[Encoded]:
        """Encode questions, checking each one's label tokens in context.

        Raises:
            UsageError: labels that are not one token each, or a prompt that cannot be cut to ``max_length``.
        """
        prompts = [self.protocol.prompt(self.task, question) for question in questions]
        labels = [self.protocol.labels(self.task, question) for question in questions]
        bodies = token_ids(self.tokenizer, [prompt.text for prompt in prompts])
        answers = [self.labels.find(names, prompt.text) for names, prompt in zip(labels, prompts, strict=True)]
        # Every prompt is checked with one of its labels, so that each label is checked behind very many prompts.
        probes = [names[i % len(names)] for i, names in enumerate(labels)]
        self.labels.check([prompt.text for prompt in prompts], bodies, probes)
        fitted = map(self._fit, questions, prompts, bodies)
        return [
            Encoded((row,), None, tuple(ids), question.label, cut=len(row) < len(self._whole(body)))
            for question, row, body, ids in zip(questions, fitted, bodies, answers, strict=True)
        ]

    def _whole(self, body: list[int]) -> list[int]:
        return self.prefix + body + self.suffix

    def _fit(self, question: Question, prompt: Prompt, body: list[int]) -> list[int]:
        """The row of a prompt's tokens, cut to ``max_length`` as the protocol cuts."""
        whole = self._whole(body)
        excess = len(whole) - self.max_length
        if excess <= 0:
            return whole
        if self.protocol.cut == "right":
            return (self.prefix + body)[: self.max_length - len(self.suffix)] + self.suffix
        offsets = self.tokenizer(prompt.text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
        lost: set[int] = set()
        for start, end in prompt.spans:
            inside = [i for i, (a, b) in enumerate(offsets) if start <= a and b <= end]
            lost.update(inside[: excess - len(lost)])
        if len(lost) < excess:
            raise UsageError(
                f"question {question.id!r} needs {len(whole) - len(lost)} tokens for its options alone, max_length is "
                f"{self.max_length}; raise max_length"
            )
        return self._whole([token for i, token in enumerate(body) if i not in lost])
