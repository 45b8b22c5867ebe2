"""Sums of outer products of many vectors, in full or, where the vectors are long, as a sketch of a few columns."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

import torch
from torch import Tensor

from bayeslora.quadrature import eigh

OVERSAMPLING = 10  # columns of a sketch beyond the rank that is asked for


class OuterSum:
    r"""The sum :math:`S = \sum_m v_m v_m^T` of vectors in :math:`R^d` that come in pieces, and its leading eigenpairs.

    Up to d = rank + 10, S itself is kept. Beyond, :math:`Y = S \Omega` with a fixed orthonormal
    :math:`\Omega [d, rank + 10]`, from which follows the Nyström approximation
    :math:`Y (\Omega^T Y)^{-1} Y^T \preceq S` (Tropp et al., "Fixed-rank approximation of a positive-semidefinite matrix
    from streaming data", 2017). Being linear in S, a sketch depends neither on the order of the vectors nor on how they
    are cut into pieces, up to rounding. Sums are float64.

    Args:
        size: Length d of the vectors.
        rank: Number of eigenpairs wanted of a long vector's sum; None keeps every sum in full.
        device: Where the sum is kept.
    """

    def __init__(self, size: int, rank: int | None, device: torch.device | str = "cpu") -> None:
        self.size, self.rank = size, rank
        width = size if rank is None else min(size, rank + OVERSAMPLING)
        self._sum = torch.zeros(size, width, dtype=torch.float64, device=device)
        self._trace = torch.zeros((), dtype=torch.float64, device=device)

    @property
    def in_full(self) -> bool:
        """Whether S itself is kept."""
        return self._sum.shape[1] == self.size

    @property
    def trace(self) -> Tensor:
        """The trace of S, exact for a sketch too; float64 scalar."""
        return self._trace

    @property
    def device(self) -> torch.device:
        """Where the sum is kept."""
        return self._sum.device

    @property
    def nbytes(self) -> int:
        """Size of the state in bytes."""
        return self._sum.nbytes

    def add(self, vectors: Tensor) -> None:
        """Add the outer products of ``vectors [M, d]``; float64, as a sketch would amplify the errors of less."""
        vectors = vectors.double()
        self._sum += vectors.mT @ (vectors if self.in_full else vectors @ self._test_matrix)
        self._trace += vectors.square().sum()

    def eigenpairs(self) -> tuple[Tensor, Tensor]:
        """Eigenvalues ``[k]``, largest first and none negative, and eigenvectors ``[d, k]``, float64.

        k is d where S is kept in full, else the rank; a sketch's eigenvalues are never above those of S.
        """
        if self.in_full:
            values, vectors = eigh((self._sum + self._sum.mT) / 2)
            return values.flip(0).clamp(min=0), vectors.flip(1)
        test = self._test_matrix
        shift = self.size**0.5 * torch.finfo(torch.float64).eps * self._sum.norm() + torch.finfo(torch.float64).tiny
        shifted = self._sum + shift * test
        core = test.mT @ shifted
        root = torch.linalg.cholesky((core + core.mT) / 2)
        half = torch.linalg.solve_triangular(root, shifted.mT, upper=False)
        _, singular, vectors = torch.linalg.svd(half, full_matrices=False)
        return (singular.square() - shift).clamp(min=0)[: self.rank], vectors.mT[:, : self.rank]

    @property
    def _test_matrix(self) -> Tensor:
        return _orthonormal(*self._sum.shape, self.device)

    def state_dict(self) -> dict[str, Tensor]:
        """Tensors from which :meth:`load_state_dict` goes on bit for bit."""
        return {"sum": self._sum.cpu(), "trace": self._trace.cpu()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take up the sum that ``state_dict`` described, of the same size and rank."""
        self._sum.copy_(state["sum"])
        self._trace.copy_(state["trace"])


@lru_cache(maxsize=8)
def _orthonormal(size: int, width: int, device: torch.device) -> Tensor:
    """Columns of a random orthonormal matrix, the same in every process."""
    gaussian = torch.randn(size, width, dtype=torch.float64, generator=torch.Generator().manual_seed(0), device="cpu")
    return torch.linalg.qr(gaussian)[0].to(device)
