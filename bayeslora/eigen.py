"""Eigendecompositions of symmetric matrices, on the CPU where a GPU does not find one."""

from __future__ import annotations

import torch
from torch import Tensor

from bayeslora.errors import RunError


def eigh(matrices: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues ``[..., d]``, smallest first, and eigenvectors ``[..., d, d]`` of symmetric matrices ``[..., d, d]``.

    A GPU's solvers are iterative and may end without a result where LAPACK has one: the CPU is asked then.

    Raises:
        RunError: there is none, as for numbers that are not finite.
    """
    try:
        values, vectors = torch.linalg.eigh(matrices)
    except torch.linalg.LinAlgError as error:
        if matrices.device.type == "cpu":
            raise RunError(f"a matrix {list(matrices.shape)} has no eigendecomposition: {error}") from error
        values, vectors = (found.to(matrices.device) for found in eigh(matrices.cpu()))
    return values, vectors
