"""The softmax's covariance over the contrasts, by a root that loses no digits where probabilities saturate."""

from __future__ import annotations

import torch
from torch import Tensor


def softmax_root(logits: Tensor) -> Tensor:
    r"""Lower triangular R with :math:`R R^T = \mathrm{diag}(p) - p p^T` over the options 1 .. C-1.

    With :math:`q_c = p_0 + \sum_{k > c} p_k` (Tanabe & Sagae, "An exact Cholesky decomposition and the generalized
    inverse of the variance-covariance matrix of the multinomial distribution", 1992):

    .. math:: R_{cc} = \sqrt{p_c q_c / q_{c-1}}, \qquad R_{ac} = -p_a \sqrt{p_c / (q_c q_{c-1})} \quad (a > c)

    Nothing is subtracted, so that a question of which the model is certain keeps its tiny curvature.

    Args:
        logits: ``[B, C]``, minus infinity at absent options, whose rows and columns are zero.

    Returns:
        ``[B, C-1, C-1]``, float64.
    """
    log_p = logits.double().log_softmax(-1)
    rest = torch.cat([log_p[:, 1:], log_p[:, :1]], -1).flip(-1).logcumsumexp(-1).flip(-1)  # log q, from q_0 to q_{C-1}
    log_p, before, after = log_p[:, 1:], rest[:, :-1], rest[:, 1:]
    diagonal = (0.5 * (log_p + after - before)).exp()
    column = (0.5 * (log_p - after - before))[:, None, :]
    below = torch.tril(-(log_p[:, :, None] + column).exp(), diagonal=-1)
    return torch.diag_embed(diagonal) + below
