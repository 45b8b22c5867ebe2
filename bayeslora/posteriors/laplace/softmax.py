r"""The softmax over contrasts of m rows: its covariance by a root that loses no digits, its gradient and likelihood.

Questions have up to D = C - 1 contrasts; ``present [N, D]`` says which, and a vector over the m rows lists them
question by question.
"""

from __future__ import annotations

from collections.abc import Callable

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


def blockwise(blocks: Tensor, present: Tensor, matrix: Tensor) -> Tensor:
    """The product of a block-diagonal matrix with another.

    Args:
        blocks: A block for every question ``[N, D, D]``.
        present: Which contrasts there are ``[N, D]``.
        matrix: ``[m, k]``.

    Returns:
        ``[m, k]``.
    """
    if len(matrix) == present.numel():  # every question has every contrast
        return (blocks.to(matrix) @ matrix.reshape(*present.shape, -1)).flatten(0, 1)
    spread = matrix.new_zeros(*present.shape, matrix.shape[-1])
    spread[present] = matrix
    return (blocks.to(matrix) @ spread)[present]


def apply_roots(root: Tensor, present: Tensor, gram: Tensor) -> Tensor:
    """:math:`R^T K R` for the inner products ``K [m, m]`` of contrasts' rows and roots ``[N, D, D]``.

    Args:
        root: Roots of the softmax's covariance ``[N, D, D]``.
        present: Which contrasts each question has, bool ``[N, D]``.
        gram: Inner products of the contrasts' rows ``[m, m]``.
    """
    return blockwise(root.mT, present, blockwise(root.mT, present, gram).T)


def blocks_of(matrix: Tensor, present: Tensor) -> Tensor:
    """The blocks ``[N, D, D]`` on the diagonal of a matrix ``[m, m]``, zero where a contrast is absent.

    Args:
        matrix: A matrix over contrasts ``[m, m]``.
        present: Which contrasts each question has, bool ``[N, D]``.
    """
    place = (present.flatten().cumsum(0) - 1).clamp(min=0).view_as(present)
    both = present[:, :, None] & present[:, None, :]
    return matrix[place[:, :, None], place[:, None, :]].masked_fill(~both, 0.0)


class Labels:
    """The labels of N questions as a likelihood of the contrasts' logits, which are a vector f of m rows.

    Args:
        label: The right option of every question ``[N]``.
        present: Which contrasts every question has ``[N, D]``.
    """

    def __init__(self, label: Tensor, present: Tensor) -> None:
        self.label, self.present = label, present

    def logits(self, rows: Tensor) -> Tensor:
        """F as logits ``[N, D + 1]``, minus infinity at absent options."""
        contrasts = rows.new_full(self.present.shape, -torch.inf)
        contrasts[self.present] = rows
        return torch.nn.functional.pad(contrasts, (1, 0))

    def log_likelihood(self, rows: Tensor) -> Tensor:
        r""":math:`\log p(y | f)`."""
        return self.logits(rows).log_softmax(-1).gather(-1, self.label[:, None]).sum()

    def slope(self, rows: Tensor) -> Tensor:
        r""":math:`\partial \log p(y | f) / \partial f`, the label less the probability, ``[m]``."""
        probabilities = self.logits(rows).softmax(-1)
        right = torch.nn.functional.one_hot(self.label, probabilities.shape[-1])
        return (right - probabilities)[:, 1:][self.present]

    def root(self, rows: Tensor) -> Tensor:
        """Roots of the softmax's covariance ``[N, D, D]``, see :func:`softmax_root`."""
        return softmax_root(self.logits(rows))

    def slope_of_trace(self, rows: Tensor, blocks: Tensor) -> Tensor:
        r""":math:`\partial \sum_n \mathrm{tr}(B_n \Lambda_n) / \partial f` ``[m]`` for fixed blocks ``B [N, D, D]``.

        Args:
            rows: The contrasts f ``[m]``.
            blocks: The blocks B ``[N, D, D]``, which are held fixed.
        """

        def trace(vector: Tensor) -> Tensor:
            """The sum of traces at the contrasts ``vector``."""
            p = self.logits(vector).softmax(-1)[:, 1:]
            return (blocks.diagonal(dim1=-2, dim2=-1) * p).sum() - torch.einsum("ni,nij,nj->", p, blocks, p)

        return gradient(trace, rows)


def gradient(function: Callable[[Tensor], Tensor], point: Tensor) -> Tensor:
    """The gradient of a scalar function of a tensor, also within ``torch.no_grad`` and ``torch.inference_mode``.

    Args:
        function: From a tensor to a scalar.
        point: Where the gradient is taken.
    """
    with torch.inference_mode(False), torch.enable_grad():
        point = point.detach().clone().requires_grad_(True)
        return torch.autograd.grad(function(point), point)[0]
