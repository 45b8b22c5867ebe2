r"""Hamiltonian Monte Carlo with a Metropolis step, K chains in one pass (Neal, 2011, arXiv:1206.1901).

The state of a chain is z in R^P. A draw takes momenta :math:`p \sim N(0, I)`, follows :math:`H(z, p) = -\log\pi(z) +
|p|^2 / 2` by L leapfrog steps of size e, and moves to where it ends with probability :math:`\min(1, e^{-\Delta H})`,
so that :math:`\pi` is left as it is whatever e. For every draw, e L is uniform between a half and one and a half
times ``length``: a trajectory of pi / 2, a quarter of a standard normal's period, is independent of its start
there (Izmailov et al., 2021, arXiv:2104.14421). There is no mass matrix: z is meant to have a standard normal prior.

In the warm-up, one step size for all chains is found by dual averaging (Hoffman & Gelman, 2014, arXiv:1111.4246) of
the harmonic mean of their acceptance probabilities (Hoffman et al., 2021, ChEES-HMC): one chain that stands still is
enough to make the steps smaller, where an ordinary mean would leave it behind. Then the step size stays.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

LogDensity = Callable[[Tensor], Tensor]  # [K, P] to [K], row by row
LEAST = 1e-3  # what an acceptance probability counts at least in the harmonic mean
STIFFNESS = 0.25  # of dual averaging; many chains say together what one says with noise, for which 0.05 is usual


@dataclass(frozen=True)
class Chains:
    """What K chains have drawn.

    Attributes:
        draws: ``[K, N, P]``, after the warm-up.
        log_density: At the draws ``[K, N]``.
        acceptance: Mean acceptance probability of each chain ``[K]``.
        step_size: That of the leapfrog steps after the warm-up.
        gradients: How often the gradient of all chains was taken.
    """

    draws: Tensor
    log_density: Tensor
    acceptance: Tensor
    step_size: float
    gradients: int


@dataclass
class DualAveraging:
    """The step size whose acceptance probability, by the mean it is told of, is ``target``.

    Attributes:
        step_size: The first one to be tried.
        target: The acceptance probability wanted.
    """

    step_size: float
    target: float = 0.65
    averaged: float = field(default=0.0, init=False)

    def __post_init__(self) -> None:
        self._centre, self._error, self._count = math.log(10 * self.step_size), 0.0, 0

    def update(self, acceptance: float) -> None:
        """Take note of what the present step size achieved, and choose the next; ``averaged`` is what they tend to."""
        self._count += 1
        weight = 1 / (self._count + 10)
        self._error = (1 - weight) * self._error + weight * (self.target - acceptance)
        log_step = self._centre - math.sqrt(self._count) / STIFFNESS * self._error
        forget = self._count**-0.75
        before = math.log(self.averaged) if self.averaged else log_step
        self.averaged = math.exp(forget * log_step + (1 - forget) * before)
        self.step_size = math.exp(log_step)


def sample(
    log_density: LogDensity,
    start: Tensor,
    draws: int,
    warm_up: int,
    generator: torch.Generator,
    step_size: float = 0.1,
    length: float = math.pi / 2,
    most_steps: int = 256,
) -> Chains:
    """Draw from a density that is known up to a constant.

    Args:
        log_density: Of K states ``[K, P]``, differentiable; the chains must not depend on one another.
        start: Where the chains begin ``[K, P]``.
        draws: Draws N of each chain that are kept.
        warm_up: Draws before them, in which the step size is found; with none, ``step_size`` stays as it is.
        generator: Source of all randomness.
        step_size: The first step size.
        length: Mean length of a trajectory.
        most_steps: Leapfrog steps of a trajectory at most; it is then shorter.

    Raises:
        ValueError: a start where the density is zero.
    """
    state = start.detach().clone()
    value, slope = _with_gradient(log_density, state)
    if not value.isfinite().all():
        raise ValueError(f"chains start where the density is not positive: {(~value.isfinite()).nonzero().flatten()}")
    adaptation, gradients = DualAveraging(step_size), 1
    kept, values, accepted = [], [], torch.zeros(len(state), dtype=state.dtype)
    for draw in range(-warm_up, draws):
        if draw == 0 and warm_up:
            step_size = adaptation.averaged
        drawn_length = length * (0.5 + float(torch.rand((), generator=generator)))
        steps = max(1, min(most_steps, round(drawn_length / step_size)))
        momentum = torch.randn(state.shape, generator=generator, dtype=state.dtype)
        end = _leapfrog(log_density, (state, momentum, slope), step_size, steps)
        gradients += steps
        energy = value - momentum.square().sum(-1) / 2
        change = end[2] - end[1].square().sum(-1) / 2 - energy
        probability = change.nan_to_num(-math.inf).clamp(max=0).exp()  # what left the numbers is not accepted
        moves = torch.rand(len(state), generator=generator, dtype=state.dtype) < probability
        state = torch.where(moves[:, None], end[0], state)
        slope = torch.where(moves[:, None], end[3], slope)
        value = torch.where(moves, end[2], value)
        if draw < 0:
            adaptation.update(float(1 / (1 / probability.clamp(min=LEAST)).mean()))
            step_size = adaptation.step_size
        else:
            kept.append(state)
            values.append(value)
            accepted += probability / draws
    return Chains(torch.stack(kept, 1), torch.stack(values, 1), accepted, step_size, gradients)


def _leapfrog(
    log_density: LogDensity, begin: tuple[Tensor, Tensor, Tensor], step_size: float, steps: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """State, momentum, log density and its gradient where ``steps`` steps from state, momentum and gradient end."""
    state, momentum, slope = begin
    momentum = momentum + step_size / 2 * slope
    for step in range(steps):
        state = state + step_size * momentum
        value, slope = _with_gradient(log_density, state)
        momentum = momentum + (step_size if step < steps - 1 else step_size / 2) * slope
    return state, momentum, value, slope


def _with_gradient(log_density: LogDensity, state: Tensor) -> tuple[Tensor, Tensor]:
    with torch.enable_grad():
        state = state.detach().requires_grad_()
        value = log_density(state)
        (slope,) = torch.autograd.grad(value.sum(), state)
    return value.detach(), slope
