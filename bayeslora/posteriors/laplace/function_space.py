r"""The full Gauss-Newton matrix by its m rows: everything from Gram matrices, the parameters' own matrix never formed.

With the contrasts' rows J of all training questions and a block-diagonal root R of the softmax's covariance
:math:`\Lambda = R R^T`, :math:`G = \tilde J^T \tilde J`, :math:`\tilde J = R^T J`, has the non-zero eigenvalues of
:math:`M = R^T K R`, where :math:`K = J J^T` is the sum of one Gram matrix for each cell of parameters. Any subset of
the weights, any grouping of precisions and any logits at which the curvature is taken follow without a second pass.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property

import torch
from torch import Tensor

from bayeslora.errors import UsageError
from bayeslora.posteriors.laplace.evidence import independent, joint
from bayeslora.posteriors.laplace.full import FullPosterior
from bayeslora.posteriors.laplace.grams import ROWS, Grams, columns_of, wide
from bayeslora.posteriors.laplace.shards import Shards, pieces
from bayeslora.posteriors.laplace.softmax import apply_roots, blockwise
from bayeslora.quadrature import eigh

TOLERANCE = 1e-6


class Directions:
    """Makes a Gaussian from combinations of the training questions' rows.

    Args:
        mean: The weights the rows were taken at.
        names: Cell to the names of its parameters.
        shards: The rows.
        budget: Most bytes the directions may take; with fewer than all the smallest curvatures are left out.
        dtype: Of the directions.
        tolerance: Directions of :math:`s / (1 + s)` up to this are left out.
    """

    def __init__(
        self,
        mean: Mapping[str, Tensor],
        names: Mapping[str, Sequence[str]],
        shards: Shards,
        budget: float = float("inf"),
        dtype: torch.dtype = torch.float32,
        tolerance: float = TOLERANCE,
    ) -> None:
        self.mean, self.names, self.shards = dict(mean), names, shards
        self.budget, self.dtype, self.tolerance = budget, dtype, tolerance

    def most(self, size: int, rows: int) -> int:
        """How many of ``rows`` directions over ``size`` parameters the budget allows.

        Args:
            size: Number of parameters.
            rows: Number of rows m.
        """
        return int(min(self.budget / (size * self.dtype.itemsize), rows))

    def kept(self, s: Tensor, precision: Mapping[str, float]) -> Tensor:
        """Those of the curvatures s, largest first, whose directions are kept: by the budget and by the tolerance.

        Args:
            s: The curvatures ``[m]``, largest first.
            precision: Parameter name to the prior's precision.
        """
        few = s[: self.most(sum(self.mean[name].numel() for name in precision), len(s))]
        return few[few / (1 + few) > self.tolerance]

    def combined(self, combine: Tensor, name: str, precision: float, products: Tensor) -> Tensor:
        """``combine [k, m]`` times one parameter's rows over its precision: ``[k, *shape]``.

        Columns are cast as they come, so that no more than a few of them are ever held in wide numbers. The inner
        products of what is kept, times the precision, are added to ``products [k, k]``.

        Args:
            combine: Coefficients ``[k, m]`` of the rows.
            name: The parameter's name.
            precision: Parameter name to the prior's precision.
            products: Inner products ``[k, k]``, which are added to in place.
        """
        columns = columns_of({name: value.numel() for name, value in self.mean.items()})[name]
        directions = torch.empty(len(combine), columns.stop - columns.start, dtype=self.dtype, device="cpu")
        for piece in pieces(columns.start, columns.stop):
            rows = wide(self.shards.columns(ROWS, piece).to(combine.device))
            part = ((combine / precision).to(rows.dtype) @ rows).to(self.dtype)
            directions[:, piece.start - columns.start : piece.stop - columns.start] = part.cpu()
            part = wide(part)
            products += precision * (part @ part.T).double()
        return directions.view(len(combine), *self.mean[name].shape)

    def moved(self, amount: Tensor, name: str) -> Tensor:
        """``amount [m]`` times one parameter's rows, ``[*shape]``.

        Args:
            amount: Coefficient of each row ``[m]``.
            name: The parameter's name.
        """
        columns = columns_of({name: value.numel() for name, value in self.mean.items()})[name]
        parts = [amount @ self.shards.columns(ROWS, piece).to(amount) for piece in pieces(columns.start, columns.stop)]
        return torch.cat(parts).view(self.mean[name].shape).cpu()


class FunctionSpace:
    r"""The full Gauss-Newton matrix over some cells of parameters, in groups with a precision each.

    .. math:: M_\lambda = \sum_g R^T K_g R / \lambda_g = U \mathrm{diag}(s) U^T, \qquad
        S = \sum_g \frac{J_g J_g^T}{\lambda_g} - K' R (I + M_\lambda)^{-1} R^T K'^T, \qquad
        K' = \sum_g \frac{J'_g J_g^T}{\lambda_g}

    with the validation questions' rows J' and, in the first term of S, those rows by themselves.

    Args:
        grams: Inner products of the rows, by group (:meth:`Grams.sums`).
        root: R ``[N, D, D]``, at the logits where the curvature is taken.
        groups: Name of a group to the cells in it; cells in no group are left out.
        directions: Makes the Gaussian.

    Raises:
        UsageError: no cell in any group.
    """

    def __init__(self, grams: Grams, root: Tensor, groups: Mapping[str, Sequence[str]], directions: Directions) -> None:
        if not groups or not all(groups.values()):
            raise UsageError("no parameter is left for the curvature")
        self.groups, self.directions, self.root, self.grams = groups, directions, root, grams

    @cached_property
    def train(self) -> Tensor:
        """The rows' Gram matrices, weighted by the roots ``[G, m, m]``."""
        return torch.stack([apply_roots(self.root, self.grams.present, gram) for gram in self.grams.train])

    @cached_property
    def _eigen(self) -> tuple[Tensor, Tensor]:
        """Eigenvalues and eigenvectors of the weighted rows' Gram matrix under precision one."""
        return eigendecomposition(self.train.sum(0))

    @cached_property
    def _rotated(self) -> Tensor:
        """Inner products of validation rows with the eigenvectors ``[N, D, m]``, for one group."""
        return self.grams.cross[0] @ blockwise(self.root, self.grams.present, self._eigen[1])

    def eigenvalues(self) -> Tensor:
        """See :class:`~bayeslora.posteriors.laplace.curvature.Curvature`."""
        return self._eigen[0]

    def log_det(self, precisions: Tensor) -> Tensor:
        """See :class:`~bayeslora.posteriors.laplace.curvature.Curvature`."""
        if len(self.groups) == 1:
            return independent([self._eigen[0]])(precisions.to(self.train.device))
        return joint(self.train)(precisions.to(self.train.device))

    def covariance(self, precisions: Tensor) -> Tensor:
        """See :class:`~bayeslora.posteriors.laplace.curvature.Curvature`."""
        if len(self.groups) > 1:
            return self.covariance_once(precisions)
        inverse = (1 / precisions.double()).to(self.train.device)[0]
        weight = inverse.square() / (1 + self._eigen[0] * inverse)
        return self.grams.own[0] * inverse - (self._rotated * weight) @ self._rotated.mT

    def covariance_once(self, precisions: Tensor) -> Tensor:
        """:meth:`covariance` for one choice of precisions, without the decomposition that serves many of one group."""
        inverse = (1 / precisions.double()).to(self.train.device)
        own = torch.einsum("gnij,g->nij", self.grams.own, inverse)
        identity = torch.eye(self.train.shape[-1], dtype=own.dtype, device=own.device)
        root = torch.linalg.cholesky(identity + torch.einsum("gij,g->ij", self.train, inverse))
        cross = torch.einsum("gndm,g->mnd", self.grams.cross, inverse)
        cross_weighted = blockwise(self.root.mT, self.grams.present, cross.flatten(1))
        explained = torch.linalg.solve_triangular(root, cross_weighted, upper=False).view_as(cross)
        return own - torch.einsum("mni,mnj->nij", explained, explained)

    def shift(self, precisions: Tensor) -> Tensor | None:
        """See :class:`~bayeslora.posteriors.laplace.curvature.Curvature`."""
        return None

    def posterior(
        self, precisions: Tensor, scale: float = 1.0, shift: Mapping[str, Tensor] | None = None
    ) -> FullPosterior:
        r"""The Gaussian, by its directions :math:`D = \mathrm{diag}(s)^{-1/2} U^T \tilde J \Lambda^{-1}`.

        The smallest curvatures are left out, by the tolerance and by the budget.

        Args:
            precisions: One for each group ``[G]``.
            scale: Factor on the covariance.
            shift: From the weights to the Gaussian's mean, see :class:`FullPosterior`.
        """
        precision = self.precision_of(precisions)
        inverse = (1 / precisions.double()).to(self.train.device)
        if len(self.groups) == 1:
            s, u = self._eigen[0] * inverse[0], self._eigen[1]
        else:
            s, u = eigendecomposition(torch.einsum("gij,g->ij", self.train, inverse))
        kept = self.directions.kept(s, precision)
        combine = blockwise(self.root, self.grams.present, u[:, : len(kept)] / kept.sqrt()).T
        products = torch.zeros(len(kept), len(kept), dtype=torch.float64, device=combine.device)
        with self.directions.shards.reading():
            rows = {n: self.directions.combined(combine, n, value, products) for n, value in precision.items()}
        return FullPosterior(self.directions.mean, rows, kept, precision, scale, shift, products)

    def precision_of(self, precisions: Tensor) -> dict[str, float]:
        """Parameter name to its group's precision."""
        return {
            name: value
            for cells, value in zip(self.groups.values(), precisions.tolist(), strict=True)
            for cell in cells
            for name in self.directions.names[cell]
        }


def eigendecomposition(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues, largest first and none negative, and eigenvectors.

    Raises:
        RunError: there are none.
    """
    values, vectors = eigh((matrix + matrix.T) / 2)
    return values.flip(0).clamp(min=0), vectors.flip(1)
