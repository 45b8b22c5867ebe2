"""What a posterior is over: a network with its questions, for S adapters at once."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from bayeslora.models.answer_model import AnswerModel
from bayeslora.types import AnswerBatch, Samples

Weights = Mapping[str, Tensor]  # parameters by their names in the model, [S, *shape] each


class Network(ABC):
    """N questions and what a network says of them under given adapters.

    Attributes:
        label: The right options ``[N]``.
    """

    label: Tensor

    @abstractmethod
    def logits(self, weights: Weights) -> Tensor:
        """Answer logits ``[S, N, C]``; minus infinity at absent options."""

    def log_likelihood(self, weights: Weights) -> Tensor:
        """Sum over the questions of the log-probability of the right option ``[S]``."""
        chosen = self.logits(weights).log_softmax(-1)
        return chosen.gather(-1, self.label.expand(len(chosen), -1)[..., None]).sum((1, 2))


@dataclass(frozen=True)
class WholeModel(Network):
    """The package's own forward pass, for adapters anywhere; :mod:`gold.last_layer` is quicker where it can be had.

    Attributes:
        model: The adapted model in float64.
        batch: The questions.
    """

    model: AnswerModel
    batch: AnswerBatch

    @property
    def label(self) -> Tensor:  # type: ignore[override]
        """The right options ``[N]``."""
        return self.batch.label

    def logits(self, weights: Weights) -> Tensor:
        """Answer logits ``[S, N, C]``; minus infinity at absent options."""
        return self.model(self.batch, Samples(weights=dict(weights))).logits  # type: ignore[no-any-return]


def products(weights: Weights) -> Tensor:
    """``B A`` of every adapted projection ``[S, L, D, D]``, which is all that predictions depend on."""
    downs = [name for name in weights if "lora_A" in name]
    return torch.stack([weights[name.replace("lora_A", "lora_B")] @ weights[name] for name in downs], 1)
