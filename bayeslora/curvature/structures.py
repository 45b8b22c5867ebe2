"""The structures of curvature that are collected batch by batch in constant memory, as passes over the data."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from bayeslora.curvature.kfac import RANK, DiagonalAccumulator, EigenAccumulator, KroneckerAccumulator
from bayeslora.curvature.kfac_tokens import TokenAccumulator
from bayeslora.curvature.ranks import Ranks
from bayeslora.errors import require_choice
from bayeslora.models.answer_model import AnswerModel
from bayeslora.posteriors.laplace.diagonal import DiagonalPosterior
from bayeslora.posteriors.laplace.kronecker import KroneckerPosterior
from bayeslora.types import AnswerBatch

_SHARING = {"kfac_expand": "expand", "kfac_reduce": "reduce", "release": "release"}
TOKEN_STRUCTURES = tuple(_SHARING)  # which need one answer position a question
BLOCK_STRUCTURES = ("kfac", "ekfac", *_SHARING, "diag")


class Accumulator(Protocol):
    """One pass over the training questions."""

    def update(self, model: AnswerModel, batch: AnswerBatch) -> Tensor:
        """Take in B questions; returns their logits ``[B, C]``.

        Args:
            model: The model.
            batch: The questions.
        """
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


def accumulators(
    structure: str,
    shapes: Mapping[str, Sequence[int]],
    rank: int | None = RANK,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    ranks: Ranks | None = None,
) -> Iterator[Accumulator]:
    """The passes over the data that a structure takes; each is to see all questions before the next is asked for.

    Args:
        structure: ``kfac`` (:class:`KroneckerAccumulator`), ``ekfac`` (that and :class:`EigenAccumulator`),
            ``kfac_expand``, ``kfac_reduce``, ``release`` (:class:`TokenAccumulator`) or ``diag``
            (:class:`DiagonalAccumulator`).
        shapes: Parameter name to its shape.
        rank: Eigenpairs of a long side's factor; None for full factors.
        device: Where the sums are kept.
        dtype: Of the Jacobian.
        ranks: The processes that fit together; None for this one alone. All of them take the eigenvectors of the first:
            those of equal eigenvalues are whatever rounding makes of them.

    Raises:
        UsageError: another structure, a rank below 1.
    """
    require_choice("the structure", structure, BLOCK_STRUCTURES)
    if structure == "diag":
        yield DiagonalAccumulator(shapes, device, dtype)
    elif structure in _SHARING:
        yield TokenAccumulator(_SHARING[structure], shapes, rank, device)
    else:
        first = KroneckerAccumulator(shapes, rank, device, dtype)
        yield first
        if structure == "ekfac":
            yield EigenAccumulator((ranks or Ranks()).agree(first.blocks()), dtype)


def gaussian(
    accumulator: Accumulator, mean: Mapping[str, Tensor], precision: float | Mapping[str, float] = 1.0
) -> KroneckerPosterior | DiagonalPosterior:
    """The Gaussian that the last pass leads to.

    Args:
        accumulator: The pass, with all questions in.
        mean: The weights it was taken at; those without curvature are known for certain.
        precision: Of the prior: one for all, or parameter name to value.

    Raises:
        UsageError: a precision that is not above 0.
    """
    family = DiagonalPosterior if isinstance(accumulator, DiagonalAccumulator) else KroneckerPosterior
    blocks = {name: block.to(torch.device("cpu"), torch.float64) for name, block in accumulator.blocks().items()}
    return family(mean, blocks, precision)
