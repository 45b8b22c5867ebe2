"""What uncertainty is measured over: the options alone, the options and the rest of the vocabulary, or all of it."""

from __future__ import annotations

import torch
from torch import Tensor

from bayeslora.metrics.answers import Answers
from bayeslora.types import Predictive


def with_rest(logits: Tensor, logsumexp: Tensor) -> Tensor:
    r"""Log-probabilities of the options and of everything else in the vocabulary (Balabanov & Linander, 2024).

    :math:`p_c = e^{f_c - \mathrm{lse}}` and :math:`p_{rest} = 1 - \sum_c p_c`, never negative.

    Args:
        logits: Answer logits ``[..., C]``, minus infinity at absent options.
        logsumexp: Log-sum-exp over the vocabulary ``[...]``.

    Returns:
        float64 ``[..., C + 1]``, the rest last.
    """
    options = logits.double() - logsumexp.double()[..., None]
    inside = options.logsumexp(-1).clamp(max=0.0)
    rest = torch.log(-torch.expm1(inside))
    return torch.cat([options, rest[..., None]], -1).log_softmax(-1)


def answers_with_rest(answers: Answers) -> Predictive:
    """The prediction over options and rest, from the logits and the log-sum-exp that were kept.

    Its ``total``, ``aleatoric`` and ``epistemic`` are over six cells where there are five options, as released, and
    no larger than over the whole vocabulary, since cells are only merged.

    Raises:
        ValueError: the logits or the log-sum-exp were not kept.
    """
    if answers.logits is None or answers.logsumexp is None:
        raise ValueError("options and rest need the members' logits and log-sum-exp, which were not kept")
    log_probs = with_rest(answers.logits, answers.logsumexp).transpose(0, 1)
    return _equally_weighted(log_probs)


def whole_vocabulary(vocab_logits: Tensor) -> Predictive:
    """The prediction over the whole vocabulary, from logits ``[S, B, V]``, which no file keeps."""
    return _equally_weighted(vocab_logits.double().log_softmax(-1))


def _equally_weighted(log_probs: Tensor) -> Predictive:
    weights = torch.full((len(log_probs),), 1 / len(log_probs), dtype=torch.float64, device=log_probs.device)
    return Predictive(log_probs, weights)
