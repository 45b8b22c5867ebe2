"""laplace-torch on our model: the opponent of laplace_lora.py.

Its batched backward passes have no rule for fused attention and would fall back to a loop, so attention is written out.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from bayeslora.models.answer_model import AnswerModel
from bayeslora.types import AnswerBatch


class AsFunction(nn.Module):
    """A model as laplace-torch wants one: from a dict of tensors to logits ``[B, C]``."""

    def __init__(self, model: AnswerModel, like: AnswerBatch) -> None:
        super().__init__()
        self.model, self.answer_ids = model, like.answer_ids[:1]

    def forward(self, x: dict[str, Tensor]) -> Tensor:
        """The options' logits."""
        rows = torch.arange(len(x["input_ids"]))
        answer_ids = self.answer_ids.expand(len(rows), -1)
        present, zeros = torch.ones_like(answer_ids).bool(), torch.zeros_like(rows)
        ids = (x["input_ids"], x["attention_mask"])
        return self.model(AnswerBatch(*ids, rows, zeros, answer_ids, present, zeros, rows, "random")).logits


class Batches:
    """A data loader of batches that are there."""

    def __init__(self, batches: Sequence[AnswerBatch]) -> None:
        self.batches = [as_dict(batch) for batch in batches]
        self.dataset = range(sum(map(len, batches)))

    def __iter__(self) -> Any:
        """The batches as dicts."""
        return iter(self.batches)

    def __len__(self) -> int:
        """Their number."""
        return len(self.batches)


def as_dict(batch: AnswerBatch) -> dict[str, Tensor]:
    """What laplace-torch passes to the model, and the labels."""
    return {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask, "labels": batch.label}


def fit(structure: str, model: AnswerModel, batches: Sequence[AnswerBatch], precision: float) -> Any:
    """Their posterior, ready to predict."""
    from laplace import Laplace
    from laplace.curvature import CurvlinopsGGN

    options: dict[str, Any] = {"subset_of_weights": "all", "hessian_structure": structure, "backend": CurvlinopsGGN}
    with warnings.catch_warnings(), written_out():
        warnings.simplefilter("ignore")
        posterior = Laplace(AsFunction(model, batches[0]), "classification", prior_precision=precision, **options)
        posterior.fit(Batches(batches), progress_bar=False)
    return posterior


def predict(posterior: Any, batch: AnswerBatch) -> Tensor:
    """Linearised prediction: probabilities ``[B, C]``, by their probit link, the cheapest they have."""
    with written_out():
        return posterior(as_dict(batch), pred_type="glm", link_approx="probit")


def variance(posterior: Any, batch: AnswerBatch) -> Tensor:
    """Covariance of the logits ``[B, C, C]``."""
    with written_out():
        return posterior._glm_predictive_distribution(as_dict(batch))[1]


def written_out() -> Any:
    """Within the block, attention is made of plain products."""
    return sdpa_kernel(SDPBackend.MATH)
