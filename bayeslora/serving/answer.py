"""One answer: probabilities, uncertainty, and what a decision rule makes of them."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Answer:
    """What a run says about one question.

    Attributes:
        id: The question's name.
        options: What there was to choose from, C texts.
        probs: Their probabilities.
        choice: Index of the most probable option.
        confidence: Its probability.
        total: Uncertainty: entropy of the probabilities, in nats.
        aleatoric: The part of it that the sampled functions agree on, in nats.
        epistemic: The part on which they differ: mutual information of answer and function, in nats.
        prediction_set: Indices of the options in the prediction set; None where the run has no decision rule.
        abstain: Whether the question is better left to a person; None likewise.
        reason: Why, in words; empty where it is answered.
        cut: Whether the front of its text was left out, since it was too long.

    Example:
        >>> from bayeslora import Answer
        >>> answer = Answer(
        ...     id="q1", options=("yes", "no"), probs=(0.9, 0.1), choice=0, confidence=0.9,
        ...     total=0.325, aleatoric=0.3, epistemic=0.025, prediction_set=(0,), abstain=False, reason="", cut=False,
        ... )
        >>> answer.options[answer.choice]
        'yes'
    """

    id: str
    options: tuple[str, ...]
    probs: tuple[float, ...]
    choice: int
    confidence: float
    total: float
    aleatoric: float
    epistemic: float
    prediction_set: tuple[int, ...] | None = None
    abstain: bool | None = None
    reason: str = ""
    cut: bool = False

    @property
    def text(self) -> str:
        """The text of the option that is chosen."""
        return self.options[self.choice]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {**asdict(self), "text": self.text}
