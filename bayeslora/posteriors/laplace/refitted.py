"""The curvature of the linearised network at its own optimum, which moves with the prior's precisions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from bayeslora.posteriors.laplace.evidence import Evidence
from bayeslora.posteriors.laplace.full import FullPosterior
from bayeslora.posteriors.laplace.function_space import Directions, FunctionSpace
from bayeslora.posteriors.laplace.grams import Grams
from bayeslora.posteriors.laplace.refit import LinearisedModel, Mode
from bayeslora.posteriors.laplace.softmax import Labels


class RefittedSpace:
    """A :class:`FunctionSpace` for every choice of precisions, at the optimum of the linearised network under them.

    The Jacobians are those of the trained weights throughout; what changes is the softmax's covariance, and the shift
    from the trained weights to the Gaussian's mean.

    Args:
        grams: Inner products of the contrasts' rows.
        trained: Logits of the training questions ``[N, C]``, minus infinity at absent options.
        label: Their labels ``[N]``.
        groups: Name of a group to the cells in it.
        directions: Makes the Gaussian.
        centre: Where the prior is centred: one of the centres that the offsets were taken for.
        distance: The weights less the prior's centre, parameter name to value.
    """

    def __init__(
        self,
        grams: Grams,
        trained: Tensor,
        label: Tensor,
        groups: Mapping[str, Sequence[str]],
        directions: Directions,
        centre: str,
        distance: Mapping[str, Tensor],
    ) -> None:
        self.groups, self.directions = groups, directions
        self.distance, self.centre = distance, centre
        self.sums = grams.sums(list(groups.values()))
        device = self.sums.train.device
        labels = Labels(label.to(device), grams.present)
        contrasts = (trained[:, 1:] - trained[:, :1]).double().to(device)[grams.present]
        self.model = LinearisedModel(contrasts, self.sums.offsets[centre].sum(0), self.sums.train, labels)
        self._space: tuple[Mode, FunctionSpace] | None = None

    def at(self, precisions: Tensor) -> FunctionSpace:
        """The curvature at the optimum under precisions ``[G]``."""
        mode = self.model.mode(precisions)
        if self._space is None or self._space[0] is not mode:
            root = self.model.labels.root(mode.rows)
            self._space = mode, FunctionSpace(self.sums, root, self.groups, self.directions)
        return self._space[1]

    def log_det(self, precisions: Tensor) -> Tensor:
        """See :class:`~bayeslora.posteriors.laplace.curvature.Curvature`."""
        return self.at(precisions).log_det(precisions)

    def covariance(self, precisions: Tensor) -> Tensor:
        """See :class:`~bayeslora.posteriors.laplace.curvature.Curvature`."""
        return self.at(precisions).covariance_once(precisions)

    def shift(self, precisions: Tensor) -> Tensor:
        """See :class:`~bayeslora.posteriors.laplace.curvature.Curvature`: ``J v [N, C-1]``."""
        coefficients = self.model.mode(precisions).coefficients
        inverse = (1 / precisions.double()).to(coefficients)
        learned = torch.einsum("gndm,m,g->nd", self.sums.cross, coefficients, inverse)
        return learned - self.sums.cross_offsets[self.centre].sum(0)

    def posterior(self, precisions: Tensor, scale: float = 1.0) -> FullPosterior:
        """See :class:`~bayeslora.posteriors.laplace.curvature.Curvature`; with the shift v.

        Args:
            precisions: The prior's precision of each group of weights ``[G]``.
            scale: Factor on the covariance.
        """
        space, coefficients = self.at(precisions), self.model.mode(precisions).coefficients
        with self.directions.shards.reading():
            learned = {n: self.directions.moved(coefficients / p, n) for n, p in space.precision_of(precisions).items()}
        shift = {n: (value - self.distance[n].double()).float() for n, value in learned.items()}
        return space.posterior(precisions, scale, shift)

    def eigenvalues(self) -> Tensor:
        """See :class:`~bayeslora.posteriors.laplace.curvature.Curvature`; those at the trained network."""
        root = self.model.labels.root(self.model.trained)
        return FunctionSpace(self.sums, root, self.groups, self.directions).eigenvalues()


class RefittedEvidence:
    """The marginal likelihood of a :class:`RefittedSpace`, each time at the optimum under the precisions.

    Args:
        space: The curvature.
    """

    def __init__(self, space: RefittedSpace) -> None:
        self.space = space

    @property
    def groups(self) -> int:
        """Number of precisions."""
        return len(self.space.groups)

    def best(self) -> Tensor:
        """The precisions ``[G]`` of highest evidence, see :meth:`LinearisedModel.best`."""
        return self.space.model.best()

    def at(self, precisions: Tensor) -> Evidence:
        """The marginal likelihood with the optimum held where it is under these precisions."""
        model = self.space.model
        mode = model.mode(precisions)
        a, inverse = mode.coefficients, (1 / precisions.double()).to(mode.coefficients)
        squares = torch.einsum("i,gij,j->g", a, model.kernels, a) * inverse.square()
        likelihood = model.labels.log_likelihood(mode.rows).item()
        return Evidence(likelihood, squares.cpu(), self.space.at(precisions).log_det)
