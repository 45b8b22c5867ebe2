r"""The marginal likelihood of Laplace's approximation as a function of the prior's precisions, and where it is highest.

With precisions :math:`\lambda_g` of G groups of parameters, :math:`\Lambda` their diagonal matrix and the Gauss-Newton
matrix G (MacKay, "A practical Bayesian framework for backpropagation networks", 1992):

.. math:: \log Z(\lambda) = \log p(D | \theta) - \frac12 \sum_g \lambda_g \|\theta_g - \theta_{0,g}\|^2
    - \frac12 \log\det(I + \Lambda^{-1/2} G \Lambda^{-1/2})

In :math:`u = \log \lambda` this is concave: the second term is minus a sum of exponentials, and the determinant is a
sum of products of :math:`e^{-u_g}` with coefficients that are not negative, whose logarithm is convex. So there is one
stationary point at most, whatever the number of groups, and Newton's method with a line search finds it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import scipy.optimize
import torch
from torch import Tensor

from bayeslora.errors import UsageError
from bayeslora.posteriors.laplace.softmax import gradient

LogDet = Callable[[Tensor], Tensor]
REACH = 50.0  # a logarithm of a precision beyond means that there is no optimum
_ITERATIONS = 200
_TOLERANCE = 1e-10  # of the slope, against the number of parameters that the data determine


def independent(eigenvalues: Sequence[Tensor]) -> LogDet:
    r""":math:`\sum_g \sum_i \log(1 + s_{gi} / \lambda_g)` for groups whose curvatures do not touch each other.

    Args:
        eigenvalues: For each of G groups, the eigenvalues of its block of the Gauss-Newton matrix, not negative.
    """
    values = [group.double().clamp(min=0) for group in eigenvalues]
    return lambda precisions: torch.stack(
        [torch.log1p(s / p).sum() for s, p in zip(values, precisions, strict=True)]
    ).sum()


def joint(grams: Tensor) -> LogDet:
    r""":math:`\log\det(I + \sum_g M_g / \lambda_g)` for groups that share m rows.

    Args:
        grams: :math:`M_g = \tilde J_g \tilde J_g^T` ``[G, m, m]``, float64, positive semi-definite.
    """

    def log_det(precisions: Tensor) -> Tensor:
        """By Cholesky's factor of the inner matrix ``[m, m]``."""
        inner = torch.einsum("gij,g->ij", grams, 1 / precisions)
        inner = inner + torch.eye(len(inner), dtype=inner.dtype, device=inner.device)
        return 2 * torch.linalg.cholesky(inner).diagonal().log().sum()

    return log_det


@dataclass(frozen=True)
class Evidence:
    """Laplace's marginal likelihood, see the module.

    Attributes:
        log_likelihood: Of the training labels at the weights found.
        squares: Squared distance of the weights from the prior's centre, by group ``[G]``.
        log_det: Precisions ``[G]`` to the log-determinant of posterior over prior precision.
    """

    log_likelihood: float
    squares: Tensor
    log_det: LogDet

    @property
    def groups(self) -> int:
        """Number of precisions G."""
        return len(self.squares)

    def at(self, precisions: Tensor) -> Evidence:
        """The marginal likelihood around the weights found, which do not move with the precisions: this one."""
        return self

    def __call__(self, precisions: Tensor) -> Tensor:
        """The log marginal likelihood, float64 scalar, for precisions ``[G]``."""
        precisions = precisions.double()
        return self.log_likelihood - 0.5 * (precisions * self.squares.double()).sum() - 0.5 * self.log_det(precisions)

    def effective(self, precisions: Tensor) -> Tensor:
        r"""Number of parameters that the data determine, by group ``[G]``.

        :math:`\gamma_g = -\partial \log\det / \partial \log \lambda_g`, for one group
        :math:`\sum_i s_i / (\lambda + s_i)`: between zero and the number of rows.
        """
        return -gradient(lambda u: self.log_det(u.exp()), precisions.double().log())

    def best(self) -> Tensor:
        r"""The precisions ``[G]`` of highest evidence: :math:`\lambda_g \|\theta_g - \theta_{0,g}\|^2 = \gamma_g`.

        Raises:
            UsageError: there is no optimum: the weights are the prior's centre, or the data say nothing about a group.
        """
        with torch.inference_mode(False):
            start = torch.ones_like(self.squares, dtype=torch.float64)
            if not ((self.squares > 0) & (self.effective(start) > 0)).all():
                raise _no_optimum("the weights are the prior's centre, or the data say nothing about some of them")
            return _maximise(lambda u: self(u.exp()), start.log()).exp()


def _maximise(concave: Callable[[Tensor], Tensor], point: Tensor) -> Tensor:
    """The highest point of a concave function, by Newton's method in a trust region."""

    def point_of(numbers: np.ndarray) -> Tensor:
        """Scipy's numbers as a tensor like ``point``."""
        return torch.from_numpy(numbers).to(point)

    found = scipy.optimize.minimize(
        lambda x: -concave(point_of(x)).item(),
        point.cpu().numpy(),
        method="trust-exact",
        jac=lambda x: -gradient(concave, point_of(x)).cpu().numpy(),
        hess=lambda x: -torch.autograd.functional.hessian(concave, point_of(x)).cpu().numpy(),
        options={"gtol": _TOLERANCE, "initial_trust_radius": 2.0, "max_trust_radius": 4.0, "maxiter": _ITERATIONS},
    )
    if not (np.abs(found.x) < REACH).all():
        raise _no_optimum(f"a precision of e^{np.abs(found.x).max():.0f} was reached")
    return point_of(found.x)


def _no_optimum(reason: str) -> UsageError:
    return UsageError(
        f"the marginal likelihood has no optimum: {reason}; give the precision as a number, or precision='validation'"
    )
