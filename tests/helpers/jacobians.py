"""Jacobians by plain autograd, to hold others against."""

import torch
from torch import Tensor

from bayeslora.models.answer_model import AnswerModel
from bayeslora.types import AnswerBatch


def by_autograd(model: AnswerModel, batch: AnswerBatch) -> dict[str, Tensor]:
    """The Jacobian one contrast of one question at a time, by the parameters' own gradients."""
    parameters, logits = model.trainable(), model(batch).logits
    jacobian = {n: torch.zeros(len(batch), logits.shape[1] - 1, *p.shape, dtype=p.dtype) for n, p in parameters.items()}
    for b, c in batch.answer_mask[:, 1:].nonzero().tolist():
        contrast = logits[b, c + 1] - logits[b, 0]
        gradients = torch.autograd.grad(contrast, list(parameters.values()), retain_graph=True)
        for name, gradient in zip(parameters, gradients, strict=True):
            jacobian[name][b, c] = gradient
    return jacobian
