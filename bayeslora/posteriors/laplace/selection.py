"""Choosing the prior's precisions, a factor on the variance and a temperature, from what a fit has left: no model."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import scipy.optimize
import torch
from torch import Tensor

from bayeslora.errors import RunError, UsageError
from bayeslora.posteriors.laplace.curvature import Curvature
from bayeslora.types import Predictive

METHODS = ("evidence", "validation")
NO_VALIDATION = (
    "Laplace has no validation questions to choose by; give val_batches, data with a validation split, or "
    "precision='evidence' and numbers for scale and temperature"
)
_CHUNK = 64  # validation questions whose quadrature nodes are in memory at a time
_REACH = 16.0  # of a search for precisions, in logarithms, to both sides of where it starts
_KNOB_REACH = 3.0  # the same for scale and temperature: between 1/20 and 20
_GRID = 17
_ROUNDS, _GAIN = 10, 1e-5


class Selectable(Protocol):
    """A marginal likelihood that precisions can be chosen by."""

    @property
    def groups(self) -> int:
        """Number of precisions G."""
        ...

    def best(self) -> Tensor:
        """The precisions ``[G]`` of highest evidence."""
        ...


@dataclass(frozen=True)
class Validation:
    """The validation questions as the weights found predict them.

    Attributes:
        mean: Contrast logits ``[N, C-1]``, minus infinity at absent options.
        label: ``[N]``.
    """

    mean: Tensor
    label: Tensor

    def nll(
        self, covariance: Tensor, scale: float = 1.0, temperature: float = 1.0, shift: Tensor | None = None
    ) -> float:
        r"""Mean negative log-likelihood under :math:`N(f / T, c S / T^2)`, f with a shift added, if any.

        Args:
            covariance: Covariance of the contrasts S ``[N, D, D]``.
            scale: Factor c on the covariance.
            temperature: The temperature T that logits are divided by.
            shift: Added to the mean of the contrasts ``[N, D]``.
        """
        mean = self.mean.double() if shift is None else self.mean.double() + shift.cpu()
        mean, cov = mean / temperature, covariance.cpu() * scale / temperature**2
        parts = zip(*(t.split(_CHUNK) for t in (mean, cov, self.label)), strict=True)
        return torch.cat([Predictive.from_gaussian(m, s).nll(y) for m, s, y in parts]).mean().item()


@dataclass(frozen=True)
class Choice:
    """What was chosen.

    Attributes:
        precisions: One for each group ``[G]``.
        scale: Factor on the covariance.
        temperature: What logits are divided by.
        notes: Figures for the report.
    """

    precisions: Tensor
    scale: float = 1.0
    temperature: float = 1.0
    notes: dict[str, Any] = field(default_factory=dict)


def choose(
    curvature: Curvature,
    evidence: Selectable,
    validation: Validation | None,
    precision: float | str,
    scale: float | str = 1.0,
    temperature: float | str = 1.0,
) -> Choice:
    """Choose the precisions, then scale and temperature.

    Args:
        curvature: What was fitted.
        evidence: Its marginal likelihood.
        validation: The validation questions, where a choice is by them.
        precision: ``evidence``, ``validation`` (least negative log-likelihood), or a number above 0.
        scale: Factor on the covariance, or ``validation``.
        temperature: What logits are divided by, or ``validation``.

    Raises:
        UsageError: a value that is not allowed, no optimum of the evidence, or no validation questions.
    """
    for name, value, allowed in (("precision", precision, METHODS), ("scale", scale, METHODS[1:])):
        _check(name, value, allowed)
    _check("temperature", temperature, METHODS[1:])
    if "validation" in (precision, scale, temperature) and (validation is None or not len(validation.label)):
        raise UsageError(NO_VALIDATION)
    precisions = _precisions(curvature, evidence, validation, precision)
    knobs = {"scale": 1.0 if isinstance(scale, str) else scale}
    knobs["temperature"] = 1.0 if isinstance(temperature, str) else temperature
    notes: dict[str, Any] = {}
    free = [name for name, value in (("scale", scale), ("temperature", temperature)) if isinstance(value, str)]
    if validation is not None and len(validation.label):
        covariance, shift = curvature.covariance(precisions), curvature.shift(precisions)
        if free:
            start = torch.zeros(len(free), dtype=torch.float64, device="cpu")

            def loss(logs: Tensor) -> float:
                """The validation questions' negative log-likelihood at the logarithms of what is free."""
                return validation.nll(
                    covariance, shift=shift, **(knobs | dict(zip(free, logs.exp().tolist(), strict=True)))
                )

            knobs |= dict(zip(free, minimise(loss, start, _KNOB_REACH).exp().tolist(), strict=True))
        notes["validation_nll"] = validation.nll(covariance, shift=shift, **knobs)
        notes["validation_nll_of_the_mean"] = validation.nll(torch.zeros_like(covariance))
    return Choice(precisions, knobs["scale"], knobs["temperature"], notes)


def _check(name: str, value: float | str, methods: tuple[str, ...]) -> None:
    if value not in methods and not (isinstance(value, int | float) and 0 < value < float("inf")):
        raise UsageError(f"Laplace's {name} is {value!r}; allowed: {', '.join(methods)}, or a number above 0")


def _precisions(
    curvature: Curvature, evidence: Selectable, validation: Validation | None, precision: float | str
) -> Tensor:
    groups = evidence.groups
    if not isinstance(precision, str):
        return torch.full((groups,), float(precision), dtype=torch.float64, device="cpu")
    if precision == "evidence":
        return evidence.best().cpu()
    assert validation is not None  # checked
    eigenvalues = curvature.eigenvalues()  # none where every question was left out
    scale = eigenvalues.max().clamp(min=1e-12).log().item() / 2 if len(eigenvalues) else 0.0

    def loss(logs: Tensor) -> float:
        """The validation questions' negative log-likelihood, infinite where a refit has no optimum."""
        precisions = logs.exp()
        try:
            return validation.nll(curvature.covariance(precisions), shift=curvature.shift(precisions))
        except RunError:  # a refit whose optimum runs off: no precision to choose
            return math.inf

    return minimise(loss, torch.full((groups,), scale, dtype=torch.float64, device="cpu")).exp()


def minimise(function: Callable[[Tensor], float], start: Tensor, reach: float = _REACH) -> Tensor:
    """The least value of a function near a point, found without derivatives: all coordinates together, then one by one.

    Every search is a grid of 17 points over what is allowed, then Brent's method around the best of them, so that a
    function with several minima is not left in the nearest. It ends where a round over the coordinates gains less than
    1e-5.

    Args:
        function: Of a vector.
        start: The vector to start from.
        reach: Most distance of every coordinate from where it starts.
    """
    together = _line(lambda step: function(start + step), -reach, reach)
    point = start + together
    value = function(point)
    for _ in range(_ROUNDS if len(point) > 1 else 0):
        before = value
        for index, axis in enumerate(torch.eye(len(point), dtype=point.dtype, device="cpu")):
            moved = _along(function, point, axis, (start - point)[index].item(), reach)
            if (reached := function(moved)) < value:
                point, value = moved, reached
        if before - value < _GAIN:
            break
    return point


def _along(function: Callable[[Tensor], float], point: Tensor, axis: Tensor, back: float, reach: float) -> Tensor:
    """The best point along an axis; ``back`` leads to where the coordinate started."""
    return point + _line(lambda step: function(point + step * axis), back - reach, back + reach) * axis


def _line(function: Callable[[float], float], lowest: float, highest: float) -> float:
    grid = torch.linspace(lowest, highest, _GRID, device="cpu").tolist()
    values = [function(step) for step in grid]
    best = values.index(min(values))
    low, high = grid[max(best - 1, 0)], grid[min(best + 1, _GRID - 1)]
    bounds, options = (low, high), {"xatol": 1e-3}
    found = scipy.optimize.minimize_scalar(function, bounds=bounds, method="bounded", options=options)
    return float(found.x) if found.fun < values[best] else grid[best]  # ends of the range are on the grid alone
