"""Rows of a table that are equal in truth."""

import torch
from torch import Tensor

from bayeslora.metrics.answers import Answers

QUESTIONS, OPTIONS = 300, 4


def answers(logits: Tensor, label: Tensor) -> Answers:
    """The answers of these logits; the true law is half of them."""
    n, c = logits.shape
    probs = logits.softmax(-1)
    members, options = probs[:, None, :], torch.full((n,), c)
    return Answers(probs, label, options, members=members, true_probs=(logits / 2).softmax(-1))


def equal_rows(k: int, generator: torch.Generator, seeds: int = 2) -> dict[str, list[Answers]]:
    """Rows that are equal in truth: one question is hard for all of them, and each errs on its own around that."""
    shared = 2 * torch.randn(QUESTIONS, OPTIONS, generator=generator, dtype=torch.float64)
    label = torch.multinomial(shared.softmax(-1), 1, generator=generator)[:, 0]

    def run() -> Answers:
        noise = torch.randn(QUESTIONS, OPTIONS, generator=generator, dtype=torch.float64)
        return answers(shared + noise, label)

    return {str(row): [run() for _ in range(seeds)] for row in range(k)}
