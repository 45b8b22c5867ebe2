"""Fits of the full Gauss-Newton matrix to small float64 transformers."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bayeslora.curvature.fit import Task
from bayeslora.curvature.jacobian import contrast_jacobian
from bayeslora.curvature.rows import Network
from bayeslora.models.answer_model import AnswerModel
from bayeslora.types import AnswerBatch
from tests.helpers.batches import label_token_batch

TARGETS = ["v_proj", "lm_head"]


def network(model: AnswerModel) -> Network:
    """What a curvature needs of a model."""
    jacobian = partial(contrast_jacobian, model)
    return Network(
        model.trainable(), lambda b: model(b).logits, jacobian, lambda b: b.label, lambda batch: batch, model
    )


def batches(**options: Any) -> list[AnswerBatch]:
    """Two batches of questions with three to five options."""
    return [label_token_batch([5, 9, 7], [4, 3, 5], 1, **options), label_token_batch([6, 4], [3, 4], 2, **options)]


def task(model: AnswerModel, train: Any, validation: Any = None, folder: Path | None = None, **options: Any) -> Task:
    """A fit in float64 with everything kept."""
    options = {"dtype": torch.float64} | options
    return Task(network=network(model), train=train, validation=validation, folder=folder, key="key", **options)


def rows(model: AnswerModel, batch: AnswerBatch) -> tuple[Tensor, Tensor]:
    """Logits and the Jacobian of the contrasts ``[B, C-1, P]``, all parameters in their order."""
    logits, jacobian = contrast_jacobian(model, batch, dtype=torch.float64)
    return logits, torch.cat([value.flatten(2) for value in jacobian.values()], -1)


def dense(model: AnswerModel, train: list[AnswerBatch]) -> Tensor:
    """The Gauss-Newton matrix ``[P, P]`` by its definition."""
    total: Any = 0.0
    for batch in train:
        logits, jacobian = rows(model, batch)
        p = logits.double().softmax(-1)[:, 1:]
        covariance = torch.diag_embed(p) - p[:, :, None] * p[:, None]
        total = total + torch.einsum("ncp,ncd,ndq->pq", jacobian, covariance, jacobian)
    return total
