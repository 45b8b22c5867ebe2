r"""Curvature of the answer's likelihood at every trainable linear map, collected batch by batch in constant memory.

The Gauss-Newton matrix of N questions is :math:`G = \sum_n J_n^T \Lambda_n J_n` with the softmax's covariance
:math:`\Lambda_n = R_n R_n^T` over the contrasts: the exact Fisher information, not an estimate from drawn labels. The
rows :math:`\tilde J_n = R_n^T J_n` take one forward and C - 1 backward passes. Every parameter's block of G is
approximated by itself, in one of :data:`STRUCTURES`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from math import prod
from typing import Any, Protocol

import torch
from torch import Tensor

from bayeslora.errors import RunError, UsageError
from bayeslora.models.answer_model import AnswerModel
from bayeslora.models.jacobian import Call, contrast_gradients, contrast_jacobian
from bayeslora.posteriors.laplace.blocks import as_matrix
from bayeslora.posteriors.laplace.diagonal import DiagonalBlock, DiagonalPosterior
from bayeslora.posteriors.laplace.kronecker import KroneckerBlock, KroneckerPosterior, KroneckerSums
from bayeslora.posteriors.laplace.softmax import softmax_root
from bayeslora.posteriors.state import parameters_of
from bayeslora.types import AnswerBatch

RANK = 32
_SHARING = {"kfac_expand": "expand", "kfac_reduce": "reduce", "release": "release"}
STRUCTURES = ("kfac", "ekfac", *_SHARING, "diag")


class Sweep(Protocol):
    """One pass over the training questions."""

    def update(self, model: AnswerModel, batch: AnswerBatch) -> Tensor:
        """Take in B questions; returns their logits ``[B, C]``."""
        ...

    def blocks(self) -> dict[str, Any]:
        """Every parameter's block, once all questions are in."""
        ...

    def state_dict(self) -> dict[str, Tensor]:
        """Tensors from which ``load_state_dict`` goes on bit for bit."""
        ...

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take up what ``state_dict`` of a pass with the same arguments described."""
        ...


def sweeps(
    structure: str,
    shapes: Mapping[str, Sequence[int]],
    rank: int | None = RANK,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Iterator[Sweep]:
    """The passes over the data that a structure takes; each is to see all questions before the next is asked for.

    Args:
        structure: ``kfac`` (:class:`KroneckerSweep`), ``ekfac`` (that and :class:`EigenSweep`), ``kfac_expand``,
            ``kfac_reduce``, ``release`` (:class:`TokenSweep`) or ``diag`` (:class:`DiagonalSweep`).
        shapes: Parameter name to its shape.
        rank: Eigenpairs of a long side's factor; None for full factors.
        device: Where the sums are kept.
        dtype: Of the Jacobian.

    Raises:
        UsageError: another structure, a rank below 1.
    """
    if structure not in STRUCTURES:
        raise UsageError(f"the structure is {structure!r}; allowed: {', '.join(STRUCTURES)}")
    if structure == "diag":
        yield DiagonalSweep(shapes, device, dtype)
    elif structure in _SHARING:
        yield TokenSweep(_SHARING[structure], shapes, rank, device)
    else:
        first = KroneckerSweep(shapes, rank, device, dtype)
        yield first
        if structure == "ekfac":
            yield EigenSweep(first.blocks(), dtype)


def gaussian(
    sweep: Sweep, mean: Mapping[str, Tensor], precision: float | Mapping[str, float] = 1.0
) -> KroneckerPosterior | DiagonalPosterior:
    """The Gaussian that the last pass leads to.

    Args:
        sweep: The pass, with all questions in.
        mean: The weights it was taken at; those without curvature are known for certain.
        precision: Of the prior: one for all, or parameter name to value.

    Raises:
        UsageError: a precision that is not above 0.
    """
    family = DiagonalPosterior if isinstance(sweep, DiagonalSweep) else KroneckerPosterior
    blocks = {name: block.to(torch.device("cpu"), torch.float64) for name, block in sweep.blocks().items()}
    return family(mean, blocks, precision)


class KroneckerSweep:
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
        """Take in B questions; returns their logits ``[B, C]``."""
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


class TokenSweep(KroneckerSweep):
    r"""KFAC from gradients g and inputs x token by token, in one of three ways to share weights over T tokens.

    - ``expand``: :math:`S_o = \sum_{n,t} g g^T`, :math:`S_i = \sum_{n,t} x x^T` divided by the number of all tokens;
    - ``reduce``: :math:`S_o` of :math:`\sum_t g_{nt}`, :math:`S_i` of the mean of :math:`x_{nt}` over t, divided by the
      number of rows;
    - ``release``: as ``expand``, but padding counts as tokens and the division is by N alone, which makes the curvature
      too large by about the padded length. This is what the code of Yang et al. (2024) computes.

    The first two are Eschenhagen et al., "Kronecker-factored approximate curvature for modern neural network
    architectures" (2023).

    Args:
        sharing: ``expand``, ``reduce`` or ``release``.
        shapes: As in :class:`KroneckerSweep`.
        rank: As in :class:`KroneckerSweep`.
        device: As in :class:`KroneckerSweep`.
    """

    def __init__(
        self,
        sharing: str,
        shapes: Mapping[str, Sequence[int]],
        rank: int | None = RANK,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__(shapes, rank, device)
        self.sharing = sharing
        self.counts = dict.fromkeys(self.sums, 0)

    def update(self, model: AnswerModel, batch: AnswerBatch) -> Tensor:
        """Take in B questions; returns their logits ``[B, C]``."""

        def add(call: Call, index: int, gradient: Tensor) -> None:
            self._add(call, index, gradient, batch)

        return contrast_gradients(model, batch, list(self.sums), add, softmax_root)

    @torch.no_grad()
    def _add(self, call: Call, index: int, gradient: Tensor, batch: AnswerBatch) -> None:
        outer, inner = call.sides(gradient)
        with torch.autocast(gradient.device.type, enabled=False):
            for name, inputs in (
                (f"{call.site.name}.weight", inner),
                (f"{call.site.name}.bias", torch.ones_like(inner[..., :1])),
            ):
                if name in self.sums:
                    self.sums[name].outer.add(self._shared(outer, batch, mean=False))
                    if index == 0:
                        self.sums[name].inner.add(self._shared(inputs, batch, mean=True))
                        self.counts[name] += self._count(inputs, batch)

    def _shared(self, values: Tensor, batch: AnswerBatch, mean: bool) -> Tensor:
        """Tokens ``[R, T, D]`` as vectors ``[M, D]``: each by itself, or one a row."""
        if self.sharing == "release":
            return values.flatten(0, 1)
        mask = _token_mask(values, batch)
        if self.sharing == "expand":
            return values[mask]
        total = (values * mask[..., None]).sum(1)
        return total / mask.sum(1, keepdim=True) if mean else total

    def _count(self, values: Tensor, batch: AnswerBatch) -> int:
        """What the sum over inputs is divided by."""
        counts = {"expand": int(_token_mask(values, batch).sum()), "reduce": len(values), "release": len(batch)}
        return counts[self.sharing]

    def blocks(self) -> dict[str, KroneckerBlock]:
        """Every parameter's block."""
        return {name: sums.block(self.counts[name]) for name, sums in self.sums.items()}

    def state_dict(self) -> dict[str, Tensor]:
        """The sums, and what inputs are divided by."""
        counts = {f"{name}/count": torch.tensor(count) for name, count in self.counts.items()}
        return {**super().state_dict(), **counts}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take up what ``state_dict`` described."""
        super().load_state_dict(state)
        self.counts = {name: int(state[f"{name}/count"]) for name in self.counts}


class EigenSweep:
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
        """Take in B questions; returns their logits ``[B, C]``."""
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


class DiagonalSweep:
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
        """Take in B questions; returns their logits ``[B, C]``."""
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


def _token_mask(values: Tensor, batch: AnswerBatch) -> Tensor:
    """Which of the tokens ``[R, T, D]`` are real, bool ``[R, T]``; all where there is one a row."""
    if values.shape[1] == batch.attention_mask.shape[1]:
        return batch.attention_mask.bool()
    return torch.ones(values.shape[:2], dtype=torch.bool, device=values.device)
