r"""Curvature from the rows of Jacobians: Kronecker factors, exact curvatures along their eigenvectors, the diagonal.

The Gauss-Newton matrix of N questions is :math:`G = \sum_n J_n^T \Lambda_n J_n` with the softmax's covariance
:math:`\Lambda_n = R_n R_n^T` over the contrasts: the exact Fisher information, not an estimate from drawn labels. The
rows :math:`\tilde J_n = R_n^T J_n` take one forward and C - 1 backward passes. Every parameter's block of G is
approximated by itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod

import torch
from torch import Tensor

from bayeslora.curvature.jacobian import contrast_jacobian
from bayeslora.errors import RunError, UsageError
from bayeslora.models.answer_model import AnswerModel
from bayeslora.posteriors.laplace.blocks import as_matrix
from bayeslora.posteriors.laplace.diagonal import DiagonalBlock
from bayeslora.posteriors.laplace.kronecker import KroneckerBlock, KroneckerSums
from bayeslora.posteriors.laplace.softmax import softmax_root
from bayeslora.posteriors.state import parameters_of
from bayeslora.types import AnswerBatch

RANK = 32  # eigenpairs kept of a long side's factor


class KroneckerAccumulator:
    r"""J-KFAC: both factors from the rows of the Jacobian as matrices ``[o, i]``.

    .. math:: G_W \approx \frac{S_o \otimes S_i}{\mathrm{tr}\, S_i}, \qquad
        S_o = \sum \tilde J \tilde J^T, \quad S_i = \sum \tilde J^T \tilde J

    The trace is that of the exact block, and padding has no influence. (Kronecker factors of whole Jacobians are
    possible because those of LoRA are small.)

    Args:
        shapes: Parameter name to its shape.
        rank: Eigenpairs of a long side's factor, see :class:`~bayeslora.posteriors.laplace.factors.OuterSum`.
        device: Where the sums are kept.
        dtype: Of the Jacobian.
    """

    def __init__(
        self,
        shapes: Mapping[str, Sequence[int]],
        rank: int | None = RANK,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        if rank is not None and rank < 1:
            raise UsageError(f"the rank of Kronecker factors is {rank}; allowed: 1 or more, or none for full factors")
        self.sums = {name: KroneckerSums((shape[0], prod(shape[1:])), rank, device) for name, shape in shapes.items()}
        self.dtype = dtype

    def update(self, model: AnswerModel, batch: AnswerBatch) -> Tensor:
        """Take in B questions; returns their logits ``[B, C]``.

        Args:
            model: The model.
            batch: The questions.
        """
        logits, rows = _rows(model, batch, list(self.sums), self.dtype)
        for name, matrices in rows.items():
            self.sums[name].outer.add(matrices.mT.flatten(0, -2))
            self.sums[name].inner.add(matrices.flatten(0, -2))
        return logits

    def blocks(self) -> dict[str, KroneckerBlock]:
        """Every parameter's block."""
        return {name: sums.block(sums.inner.trace) for name, sums in self.sums.items()}

    def state_dict(self) -> dict[str, Tensor]:
        """The sums, ``parameter/side/kind``."""
        states = {name: sums.state_dict() for name, sums in self.sums.items()}
        return {f"{name}/{key}": tensor for name, state in states.items() for key, tensor in state.items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take up the sums that ``state_dict`` described."""
        for name, sums in self.sums.items():
            sums.load_state_dict(parameters_of(name, state))


class EigenAccumulator:
    r"""J-EKFAC: the curvatures :math:`\sum (U^T \tilde J V)_{kl}^2` along given eigenvectors, exact ones.

    George et al., "Fast approximate natural gradient descent in a Kronecker-factored eigenbasis" (2018), on the rows of
    the Jacobian. The eigenvectors have to be known, so this is a second pass over the data.

    Args:
        blocks: Every parameter's block, whose eigenvectors are kept.
        dtype: Of the Jacobian.
    """

    def __init__(self, blocks: Mapping[str, KroneckerBlock], dtype: torch.dtype = torch.float32) -> None:
        self.bases, self.dtype = dict(blocks), dtype
        self.sums = {name: torch.zeros_like(block.values) for name, block in blocks.items()}

    def update(self, model: AnswerModel, batch: AnswerBatch) -> Tensor:
        """Take in B questions; returns their logits ``[B, C]``.

        Args:
            model: The model.
            batch: The questions.
        """
        logits, rows = _rows(model, batch, list(self.sums), self.dtype)
        for name, matrices in rows.items():
            basis = self.bases[name].to(matrices.device, matrices.dtype)
            self.sums[name] += basis.rotate(matrices).double().square().sum((0, 1)).to(self.sums[name].device)
        return logits

    def blocks(self) -> dict[str, KroneckerBlock]:
        """Every parameter's block."""
        return {name: KroneckerBlock(self.sums[name], b.left, b.right) for name, b in self.bases.items()}

    def state_dict(self) -> dict[str, Tensor]:
        """The sums by parameter; the eigenvectors are the first pass's."""
        return {name: values.cpu() for name, values in self.sums.items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take up the sums that ``state_dict`` described."""
        for name, values in self.sums.items():
            values.copy_(state[name])


class DiagonalAccumulator:
    r"""The exact diagonal :math:`\sum \tilde J^2` of the Gauss-Newton matrix, over whole questions.

    Args:
        shapes: Parameter name to its shape.
        device: Where the sums are kept.
        dtype: Of the Jacobian.
    """

    def __init__(
        self,
        shapes: Mapping[str, Sequence[int]],
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        matrices = {name: (shape[0], prod(shape[1:])) for name, shape in shapes.items()}
        self.sums = {n: torch.zeros(*shape, dtype=torch.float64, device=device) for n, shape in matrices.items()}
        self.dtype = dtype

    def update(self, model: AnswerModel, batch: AnswerBatch) -> Tensor:
        """Take in B questions; returns their logits ``[B, C]``.

        Args:
            model: The model.
            batch: The questions.
        """
        logits, rows = _rows(model, batch, list(self.sums), self.dtype)
        for name, matrices in rows.items():
            self.sums[name] += matrices.square().sum((0, 1)).to(self.sums[name])
        return logits

    def blocks(self) -> dict[str, DiagonalBlock]:
        """Every parameter's block."""
        return {name: DiagonalBlock(values) for name, values in self.sums.items()}

    def state_dict(self) -> dict[str, Tensor]:
        """The sums by parameter."""
        return {name: values.cpu() for name, values in self.sums.items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take up the sums that ``state_dict`` described."""
        for name, values in self.sums.items():
            values.copy_(state[name])


def _rows(
    model: AnswerModel, batch: AnswerBatch, names: list[str], dtype: torch.dtype
) -> tuple[Tensor, dict[str, Tensor]]:
    r"""Logits ``[B, C]`` and the rows :math:`R_n^T J_n` as matrices, name to ``[B, C-1, o, i]``.

    Raises:
        RunError: a row that is not finite.
    """
    logits, rows = contrast_jacobian(model, batch, names, dtype, softmax_root)
    for name, value in rows.items():
        if not torch.isfinite(value).all():
            raise RunError(f"the Jacobian of {name} is not finite on {batch.dataset}, rows {batch.example_id.tolist()}")
    return logits, {name: as_matrix(value, 2) for name, value in rows.items()}
