r"""The optimum of the network linearised in its weights: a generalised linear model that is solved in function space.

Around the weights :math:`w_0` that training found, the contrasts of all training questions are
:math:`f(w) = f_0 + J (w - w_0)`. Under a prior :math:`N(\theta_0, \Lambda^{-1})` over the weights this is
Gaussian-process classification with mean :math:`\mu = f_0 - J (w_0 - \theta_0)` and kernel
:math:`K = J \Lambda^{-1} J^T` (Khan et al., "Approximate inference turns deep networks into Gaussian processes", 2019,
arXiv 1906.01930; Immer et al., "Improving predictions of Bayesian neural nets via local linearization", 2021,
arXiv 2008.08400), whose posterior has one maximum,

.. math:: f^* = \mu + K a, \quad a = \nabla \log p(y \mid f^*), \qquad
    w^* = w_0 + v, \quad v = -(w_0 - \theta_0) + \Lambda^{-1} J^T a,

and its marginal likelihood by Laplace's approximation there (Rasmussen & Williams, "Gaussian processes for machine
learning", 2006, chapter 3; Antoran et al., "Adapting the linearised Laplace model evidence for modern deep learning",
2022, arXiv 2206.08900), with :math:`B = I + R^T K R` and :math:`R R^T` the softmax's covariance at :math:`f^*`,

.. math:: \log Z(\lambda) = \log p(y \mid f^*) - \frac12 a^T K a - \frac12 \log \det B.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
import scipy.optimize
import torch
from torch import Tensor

from bayeslora.errors import RunError, UsageError
from bayeslora.posteriors.laplace.softmax import Labels, apply_roots, blocks_of, blockwise

_STEPS, _HALVINGS, _DIGITS = 60, 40, 1e-13
_TIGHT, _LOOSE = 1e-10, 1e-6  # gradient norms, against the length of the step from the prior: aimed at, accepted
_FEW = 1e-2  # parameters that the data determine below which a group is said to follow its prior alone
_REACH = 25.0  # of the logarithms of precisions around where the curvature is as large
_GRID = tuple(range(8, -9, -2))  # where they are tried first; every one starts from the optimum of the one before
_PART = 150  # questions on which they are tried
_NEAR = 0.2  # how far from the best of these questions that of all is looked for first, in logarithms
_TINY = 1e-150  # a root of a probability below which its curvature counts as none
_NO_OPTIMUM = "the marginal likelihood has no optimum where the linearised network is refitted"
_INSTEAD = "give the precision as a number, or precision='validation'"


@dataclass(frozen=True)
class Mode:
    """The optimum under some precisions.

    Attributes:
        coefficients: a ``[m]``.
        rows: The contrasts' logits :math:`f^*` ``[m]``.
        gradient_norm: Norm of the objective's gradient by whitened weights, which is zero at the optimum.
        steps: Newton steps taken.
    """

    coefficients: Tensor
    rows: Tensor
    gradient_norm: float
    steps: int


class LinearisedModel:
    r"""The network linearised in its weights on the training questions, with a Gaussian prior in G groups.

    Args:
        trained: The contrasts' logits of the network itself, :math:`f_0` ``[m]``, float64.
        offset: :math:`J (w_0 - \theta_0)` ``[m]``: what the weights' distance from the prior's centre is worth.
        kernels: :math:`J_g J_g^T` ``[G, m, m]``.
        labels: The questions' labels.
    """

    def __init__(self, trained: Tensor, offset: Tensor, kernels: Tensor, labels: Labels) -> None:
        self.trained, self.prior_mean, self.kernels, self.labels = trained, trained - offset, kernels, labels
        self._modes: dict[tuple[float, ...], Mode] = {}  # by precisions; the next search starts from the last
        self._effective: dict[tuple[float, ...], Tensor] = {}

    def kernel(self, precisions: Tensor) -> Tensor:
        r""":math:`K = \sum_g K_g / \lambda_g`, ``[m, m]``."""
        return torch.einsum("gij,g->ij", self.kernels, 1 / precisions.double().to(self.kernels.device))

    def mode(self, precisions: Tensor) -> Mode:
        """The optimum by Newton's method, from the trained network, with steps halved until the objective rises.

        Raises:
            RunError: the optimum was not reached.
        """
        given = tuple(precisions.tolist())
        if given in self._modes:
            return self._modes[given]
        kernel = self.kernel(precisions)
        found = self._ascend(kernel, *self._start_of(kernel))
        tolerance = _LOOSE * (1 + _norm(found.coefficients, kernel))
        if not found.gradient_norm <= tolerance:
            raise RunError(
                f"the linearised network was not refitted under the prior precision {_shown(precisions)}: after "
                f"{found.steps} Newton steps the gradient's norm is {found.gradient_norm:.1e}, logits are up to "
                f"{found.rows.abs().max().item():.1e}. The optimum runs off where questions can be told apart and the "
                "prior is too weak; give a larger precision, or mean='trained'"
            )
        self._modes[given] = found
        return found

    def _start_of(self, kernel: Tensor) -> tuple[float, Tensor]:
        """Where to start from, and the objective there: the last optimum's a, or Newton's step from its logits."""
        last = next(reversed(self._modes.values()), Mode(torch.zeros_like(self.trained), self.trained, 0.0, 0))
        starts = (last.coefficients, self._newton(kernel, last.rows))
        return max(((self._objective(kernel, start), start) for start in starts), key=lambda pair: pair[0])

    def _ascend(self, kernel: Tensor, value: float, best: Tensor) -> Mode:
        slack = self._slack(kernel, best)
        steps = 0
        while steps < _STEPS:
            if slack <= _TIGHT * (1 + _norm(best, kernel)):
                break
            move, length = self._step(kernel, best), 1.0
            for _ in range(_HALVINGS):
                reached = self._objective(kernel, best + length * move)
                if reached > value + _DIGITS * abs(value):
                    break
                if reached > value - _DIGITS * abs(value) and self._slack(kernel, best + length * move) < slack:
                    break  # as high as the objective's digits tell, and flatter
                length /= 2
            else:
                break
            steps, value, best = steps + 1, reached, best + length * move
            slack = self._slack(kernel, best)
        return Mode(best, self.prior_mean + kernel @ best, slack, steps)

    def _slack(self, kernel: Tensor, coefficients: Tensor) -> float:
        """Norm of the objective's gradient by whitened weights."""
        rows = self.prior_mean + kernel @ coefficients
        return _norm(self.labels.slope(rows) - coefficients, kernel)

    def _objective(self, kernel: Tensor, coefficients: Tensor) -> float:
        moved = kernel @ coefficients
        value = self.labels.log_likelihood(self.prior_mean + moved) - 0.5 * coefficients @ moved
        return value.item() if value.isfinite() else -torch.inf

    def _step(self, kernel: Tensor, coefficients: Tensor) -> Tensor:
        r"""Newton's step :math:`(I + \Lambda K)^{-1} (\nabla - a)`, from a difference, so that it keeps its digits."""
        rows = self.prior_mean + kernel @ coefficients
        return self._solved(kernel, rows, self.labels.slope(rows) - coefficients)

    def _newton(self, kernel: Tensor, rows: Tensor) -> Tensor:
        r"""The a that Newton's step leads to from any f: :math:`(I + \Lambda K)^{-1} [\Lambda (f - \mu) + \nabla]`."""
        root, present = self.labels.root(rows), self.labels.present
        pulled = blockwise(root, present, blockwise(root.mT, present, (rows - self.prior_mean)[:, None]))
        return self._solved(kernel, rows, pulled[:, 0] + self.labels.slope(rows))

    def _solved(self, kernel: Tensor, rows: Tensor, vector: Tensor) -> Tensor:
        r""":math:`(I + \Lambda K)^{-1} x = x - R B^{-1} R^T K x` at logits f."""
        root, present = self.labels.root(rows), self.labels.present
        inner = blockwise(root.mT, present, (kernel @ vector)[:, None])
        return vector - blockwise(root, present, torch.cholesky_solve(inner, _factor(root, present, kernel)))[:, 0]

    def log_evidence(self, precisions: Tensor) -> tuple[float, Tensor]:
        r"""The log marginal likelihood, and its gradient by :math:`u = \log \lambda` ``[G]``.

        The gradient is differentiated through the optimum: with
        :math:`\Sigma = K - K R B^{-1} R^T K` and :math:`q = \partial \operatorname{tr}(\Sigma \Lambda) / \partial f`,

        .. math:: \frac{\partial \log Z}{\partial u_g} = -\frac{a^T K_g a}{2 \lambda_g} + \frac{\gamma_g}{2}
            + \frac{1}{2 \lambda_g} q^T (I + K \Lambda)^{-1} K_g a, \qquad
            \gamma_g = \operatorname{tr}(R B^{-1} R^T K_g) / \lambda_g

        (Rasmussen & Williams, 2006, section 5.5.1). Its last term is missing where precision and optimum are found
        in turns, which therefore ends elsewhere. Of :math:`\Sigma` a block for every question is needed, which follows
        from :math:`R^T \Sigma R = I - B^{-1}`.
        """
        mode, kernel = self.mode(precisions), self.kernel(precisions)
        a, present, root = mode.coefficients, self.labels.present, self.labels.root(mode.rows)
        factor = _factor(root, present, kernel)
        value = self.labels.log_likelihood(mode.rows) - 0.5 * a @ kernel @ a - factor.diagonal().log().sum()
        inverse = torch.cholesky_inverse(factor)
        q = self.labels.slope_of_trace(mode.rows, _unweighted(root, present, blocks_of(inverse, present)))
        inner = blockwise(root.mT, present, (kernel @ q)[:, None])
        pulled = q - blockwise(root, present, inverse @ inner)[:, 0]
        determined = len(a) - inverse.diagonal().sum()
        slopes, effective = [], []
        for own, precision in zip(self.kernels, precisions.tolist(), strict=True):
            one = len(self.kernels) == 1
            trace = determined * precision if one else (inverse * apply_roots(root, present, own)).sum()
            slopes.append((trace - a @ own @ a + pulled @ own @ a) / (2 * precision))
            effective.append(trace / precision)
        self._effective[tuple(precisions.tolist())] = torch.stack(effective).cpu()
        return value.item(), torch.stack(slopes).cpu()

    def best(self) -> Tensor:
        """The precisions ``[G]`` of highest evidence, each at its own optimum.

        Where to start is told by a grid of common precisions on some of the questions. From there one precision is
        found as the root of the evidence's slope (Brent), on some of the questions and then on all, several by L-BFGS.

        Raises:
            UsageError: there is no optimum: the evidence rises towards a precision of zero or infinity.
        """
        middle, part = self._middle(), self._part()
        low, high, start = middle - _REACH, middle + _REACH, part._start()
        found = self._by_logarithm()
        if len(self.kernels) == 1:
            start = start if part is self else _root(part._by_logarithm(), start, low, high, 1.0)
            best = np.asarray([_root(found, start, low, high, 1.0 if part is self else _NEAR)])
        else:
            options = {"ftol": 1e-13, "gtol": 1e-6, "maxiter": 200}
            from_here = np.full(len(self.kernels), start)
            best = scipy.optimize.minimize(
                lambda logs: (-found(*logs)[0], -found(*logs)[1]),
                from_here,
                jac=True,
                method="L-BFGS-B",
                bounds=[(low, high)] * len(self.kernels),
                options=options,
            ).x
        precisions = torch.from_numpy(best).exp()
        off = (np.abs(best - middle) > _REACH - 1e-3) | (self.effective(precisions).numpy() < _FEW)
        if off.any():
            raise UsageError(f"{_NO_OPTIMUM}: it rises towards a precision of {_shown(precisions)}; {_INSTEAD}")
        return precisions

    def _by_logarithm(self) -> Callable[..., tuple[float, np.ndarray]]:
        """The evidence and its slope by the logarithms of precisions; minus infinity where the optimum runs off."""

        @cache
        def found(*logs: float) -> tuple[float, np.ndarray]:
            """Value and slope at the logarithms of precisions."""
            try:
                value, slope = self.log_evidence(torch.tensor(logs, dtype=torch.float64, device="cpu").exp())
            except RunError:  # no precision to choose
                return -np.inf, np.full(len(logs), np.inf)
            return value, slope.numpy()

        return found

    def _part(self) -> LinearisedModel:
        """The model of some of the questions; itself where there are few."""
        questions = len(self.labels.label)
        if questions <= _PART:
            return self
        chosen = torch.arange(_PART, device=self.trained.device) * questions // _PART
        mask = torch.zeros(questions, dtype=torch.bool, device=self.trained.device)
        mask[chosen] = True
        rows = mask[:, None].expand_as(self.labels.present)[self.labels.present]
        labels = Labels(self.labels.label[mask], self.labels.present[mask])
        offset = self.trained[rows] - self.prior_mean[rows]
        return LinearisedModel(self.trained[rows], offset, self.kernels[:, rows][:, :, rows], labels)

    def _start(self) -> float:
        """The logarithm of the best of a grid of precisions that are the same for all groups."""
        middle, values = self._middle(), []
        for point in _GRID:
            try:
                shared = torch.full((len(self.kernels),), middle + point, dtype=torch.float64, device="cpu")
                values.append(self.log_evidence(shared.exp())[0])
            except RunError:  # the optimum runs off: no precision to choose
                values.append(-np.inf)
        reached = np.asarray(values)[np.isfinite(values)]
        if not len(reached) or not np.ptp(reached) > _DIGITS * np.abs(reached).max():
            raise UsageError(f"{_NO_OPTIMUM}: the questions say nothing about the weights; {_INSTEAD}")
        return middle + _GRID[int(np.argmax(values))]

    def effective(self, precisions: Tensor) -> Tensor:
        r"""Number of parameters :math:`\gamma_g` that the data determine at the optimum, by group ``[G]``."""
        given = tuple(precisions.tolist())
        if given not in self._effective:
            self.log_evidence(precisions)
        return self._effective[given]

    def _middle(self) -> float:
        """The logarithm of a precision as large as the mean curvature of a row at the trained network."""
        root = self.labels.root(self.trained)
        trace = apply_roots(root, self.labels.present, self.kernels.sum(0)).diagonal()
        size = trace.mean().item() if len(trace) else 0.0
        if not size > 0:
            size = self.kernels.sum(0).diagonal().mean().item() if len(trace) else 1.0
        return float(np.log(max(size, 1e-30)))


def _root(
    found: Callable[[float], tuple[float, np.ndarray]], start: float, low: float, high: float, step: float
) -> float:
    """Where a slope falls through zero, looked for from a point on; an end of the range where it does not."""

    def slope(log: float) -> float:
        """The slope of what ``found`` gives at a logarithm."""
        return float(found(log)[1].item())

    toward, here = (1.0, start) if slope(start) > 0 else (-1.0, start)
    while low < here < high:
        other = min(max(here + toward * step, low), high)
        if slope(other) * toward <= 0:
            return float(scipy.optimize.brentq(slope, here, other, xtol=1e-3))
        here, step = other, 2 * step
    return here


def _factor(root: Tensor, present: Tensor, kernel: Tensor) -> Tensor:
    """The Cholesky factor of B."""
    matrix = apply_roots(root, present, kernel)
    matrix.diagonal().add_(1.0)
    try:
        return torch.linalg.cholesky(matrix)
    except torch.linalg.LinAlgError as error:
        size = matrix.diagonal().max().item()
        raise RunError(
            f"the linearised network was not refitted: the questions' curvature is {size:.1e} times the prior's, more "
            "than float64 can tell apart. The prior is too weak; give a larger precision, or mean='trained'"
        ) from error


def _norm(coefficients: Tensor, kernel: Tensor) -> float:
    """Length in weight space, whitened by the prior, of what the coefficients stand for."""
    return (coefficients @ kernel @ coefficients).clamp(min=0).sqrt().item()


def _unweighted(root: Tensor, present: Tensor, inverse: Tensor) -> Tensor:
    r"""The blocks :math:`R^{-T} (I - B^{-1}) R^{-1}` of :math:`\Sigma`; zero where a contrast has no curvature."""
    usable = present & (root.diagonal(dim1=-2, dim2=-1) > _TINY)
    lower = root.masked_fill(~(usable[:, :, None] & usable[:, None, :]), 0.0)
    lower = lower + torch.diag_embed((~usable).to(root.dtype))
    both = torch.diag_embed(usable.to(root.dtype)) - inverse.masked_fill(~(usable[:, :, None] & usable[:, None]), 0.0)
    half = torch.linalg.solve_triangular(lower.mT, both, upper=True)
    return torch.linalg.solve_triangular(lower.mT, half.mT, upper=True)


def _shown(precisions: Tensor) -> str:
    return ", ".join(f"{value:.3g}" for value in precisions.tolist())
