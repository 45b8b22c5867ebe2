r"""The full Gauss-Newton matrix by its m rows: everything from Gram matrices, the parameters' own matrix never formed.

With the rows :math:`\tilde J = R^T J` of all training questions (:math:`R R^T` is the softmax's covariance over
contrasts), :math:`G = \tilde J^T \tilde J` has the non-zero eigenvalues of :math:`M = \tilde J \tilde J^T`, which is
the sum of one Gram matrix for each cell of parameters. Any choice of sites and any grouping of precisions is a sum over
cells, without a second pass.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from bayeslora.errors import RunError, UsageError
from bayeslora.posteriors.laplace.evidence import independent, joint
from bayeslora.posteriors.laplace.full import FullPosterior
from bayeslora.posteriors.laplace.shards import Shards

ROWS = "rows/"  # prefix of a parameter's rows in a shard
TOLERANCE = 1e-6


@dataclass(frozen=True)
class Grams:
    """Inner products of the rows of m training and N validation contrasts, by cell of parameters; float64.

    Attributes:
        cells: Name of each cell.
        train: ``[cells, m, m]``.
        cross: Validation with training rows ``[cells, N, D, m]``, D the largest number of contrasts.
        own: Each validation question's with itself ``[cells, N, D, D]``.
    """

    cells: list[str]
    train: Tensor
    cross: Tensor
    own: Tensor


def gram_matrices(
    train: Shards,
    validation: Shards | None,
    sizes: Mapping[str, int],
    cell_of: Mapping[str, str],
    device: torch.device | str = "cpu",
) -> Grams:
    """Every cell's inner products, from one reading of the shards.

    Sums are float64; on a GPU, products over up to 16384 columns are taken in float32 first.

    Args:
        train: Rows of the training questions.
        validation: Rows of the validation questions, every question with all of its contrasts.
        sizes: Parameter name to number of entries.
        cell_of: Parameter name to its cell.
        device: Where the products are taken.

    Raises:
        RunError: a number that is not finite, naming the parameter.
    """
    cells = list(dict.fromkeys(cell_of[name] for name in sizes))
    present = contrasts_of(validation)
    m = sum(len(train.read(i, f"{ROWS}{next(iter(sizes))}", slice(0, 1))) for i in range(len(train)))
    shape = (len(cells), *present.shape)
    grams = Grams(
        cells,
        torch.zeros(len(cells), m, m, dtype=torch.float64, device=device),
        torch.zeros(*shape, m, dtype=torch.float64, device=device),
        torch.zeros(*shape, shape[-1], dtype=torch.float64, device=device),
    )
    for name, size in sizes.items():
        cell = cells.index(cell_of[name])
        for columns, rows in train.columns(f"{ROWS}{name}", size):
            rows = _wide(rows.to(device))
            grams.train[cell] += (rows @ rows.T).double()
            if validation is not None:
                other = _wide(_padded(validation, name, columns, present).to(device))
                grams.cross[cell] += (other @ rows.T).double()
                grams.own[cell] += (other @ other.mT).double()
        if not (grams.train[cell].isfinite().all() and grams.own[cell].isfinite().all()):
            raise RunError(f"the Gram matrix of {name} is not finite; look for an overflow in the model's dtype")
    return grams


def contrasts_of(shards: Shards | None) -> Tensor:
    """Which contrasts every question has ``[N, D]``."""
    logits = [] if shards is None else shards.stacked("logits")
    width = max((one.shape[1] - 1 for one in logits), default=0)
    masks = [torch.nn.functional.pad(one[:, 1:].isfinite(), (0, width - one.shape[1] + 1)) for one in logits]
    return torch.cat(masks) if masks else torch.zeros(0, 0, dtype=torch.bool, device="cpu")


def _padded(shards: Shards, name: str, columns: slice, present: Tensor) -> Tensor:
    """``[N, D, columns]`` with zeros where a question has fewer contrasts."""
    rows = torch.cat([shards.read(index, f"{ROWS}{name}", columns) for index in range(len(shards))])
    padded = rows.new_zeros(*present.shape, rows.shape[-1])
    padded[present] = rows
    return padded


class FunctionSpace:
    r"""The full Gauss-Newton matrix over some cells of parameters, in groups with a precision each.

    .. math:: M_\lambda = \sum_g M_g / \lambda_g = U \mathrm{diag}(s) U^T, \qquad
        S = \sum_g \frac{J_g J_g^T}{\lambda_g} - K (I + M_\lambda)^{-1} K^T, \qquad
        K = \sum_g \frac{J_g \tilde J_g^T}{\lambda_g}

    Args:
        mean: The weights the rows were taken at.
        grams: Inner products of the rows.
        groups: Name of a group to the cells in it; cells in no group are left out.
        names: Cell to the names of its parameters.
        shards: The rows themselves, which directions are made of.
        budget: Most bytes the directions may take; with fewer than all the smallest curvatures are left out.
        dtype: Of the directions.
        tolerance: Directions of :math:`s / (1 + s)` up to this are left out.

    Raises:
        UsageError: no cell in any group.
    """

    def __init__(
        self,
        mean: Mapping[str, Tensor],
        grams: Grams,
        groups: Mapping[str, Sequence[str]],
        names: Mapping[str, Sequence[str]],
        shards: Shards,
        budget: float = float("inf"),
        dtype: torch.dtype = torch.float32,
        tolerance: float = TOLERANCE,
    ) -> None:
        if not groups or not all(groups.values()):
            raise UsageError(f"no site is left for the curvature; here are {', '.join(grams.cells)}")
        self.mean, self.groups, self.names, self.shards = dict(mean), groups, names, shards
        self.budget, self.dtype, self.tolerance = budget, dtype, tolerance
        index = [[grams.cells.index(cell) for cell in cells] for cells in groups.values()]
        self.train, self.cross, self.own = (
            torch.stack([values[cells].sum(0) for cells in index]) for values in (grams.train, grams.cross, grams.own)
        )

    @cached_property
    def _eigen(self) -> tuple[Tensor, Tensor]:
        """Eigenvalues and eigenvectors of the rows' Gram matrix under precision one."""
        return _eigh(self.train.sum(0))

    @cached_property
    def _rotated(self) -> Tensor:
        """Inner products of validation rows with the eigenvectors ``[N, D, m]``, for one group."""
        return self.cross[0] @ self._eigen[1]

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
        inverse = (1 / precisions.double()).to(self.train.device)
        own = torch.einsum("gnij,g->nij", self.own, inverse)
        if len(self.groups) == 1:
            weight = inverse[0].square() / (1 + self._eigen[0] * inverse[0])
            return own - (self._rotated * weight) @ self._rotated.mT
        root = torch.linalg.cholesky(torch.eye(self.train.shape[-1], device="cpu").to(own) + self._weighted(inverse))
        cross = torch.einsum("gndm,g->mnd", self.cross, inverse)
        explained = torch.linalg.solve_triangular(root, cross.flatten(1), upper=False).view_as(cross)
        return own - torch.einsum("mni,mnj->nij", explained, explained)

    def _weighted(self, inverse: Tensor) -> Tensor:
        return torch.einsum("gij,g->ij", self.train, inverse)

    def posterior(self, precisions: Tensor, scale: float = 1.0) -> FullPosterior:
        r"""The Gaussian, by its directions :math:`D = \mathrm{diag}(s)^{-1/2} U^T \tilde J \Lambda^{-1}`.

        The smallest curvatures are left out, by the tolerance and by the budget.
        """
        precision = {
            name: value
            for cells, value in zip(self.groups.values(), precisions.tolist(), strict=True)
            for cell in cells
            for name in self.names[cell]
        }
        s, u = _eigh(self._weighted((1 / precisions.double()).to(self.train.device)))
        kept = s[: self.most(sum(self.mean[name].numel() for name in precision))]
        kept = kept[kept / (1 + kept) > self.tolerance]
        combine = (u[:, : len(kept)] / kept.sqrt()).T
        directions = {name: self._combined(combine, name) / value for name, value in precision.items()}
        return FullPosterior(
            self.mean, {n: rows.to(self.dtype) for n, rows in directions.items()}, kept, precision, scale
        )

    def most(self, size: int) -> int:
        """How many directions over ``size`` parameters the budget allows."""
        return int(min(self.budget / (size * self.dtype.itemsize), self.train.shape[-1]))

    def _combined(self, combine: Tensor, name: str) -> Tensor:
        """``combine [k, m]`` times one parameter's rows: ``[k, *shape]``, at least float32."""
        parts = []
        for _, rows in self.shards.columns(f"{ROWS}{name}", self.mean[name].numel()):
            rows = _wide(rows.to(combine.device))
            parts.append((combine.to(rows.dtype) @ rows).cpu())
        return torch.cat(parts, -1).view(len(combine), *self.mean[name].shape)


def _eigh(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues, largest first and none negative, and eigenvectors.

    Raises:
        RunError: there are none.
    """
    try:
        values, vectors = torch.linalg.eigh((matrix + matrix.T) / 2)
    except torch.linalg.LinAlgError as error:
        raise RunError(f"the Gram matrix [{len(matrix)}] has no eigendecomposition: {error}") from error
    return values.flip(0).clamp(min=0), vectors.flip(1)


def _wide(tensor: Tensor) -> Tensor:
    """In float64 where that is cheap, else at least in float32."""
    wide = torch.float32 if tensor.is_cuda else torch.float64
    return tensor.to(torch.promote_types(tensor.dtype, wide))
