r"""Noise that is isotropic in the column space of every LoRA update: training-free Bayesianisation (Shi et al., 2024).

With the thin SVD :math:`B = U D V^T`, the update is :math:`B A = (U D)(V^T A)`. TFB puts independent noise of standard
deviation :math:`\sigma / d_i` on row i of :math:`V^T A`, which is noise :math:`V D^{-1} \sigma \epsilon` on A itself: A
and B stay as they are, and

.. math:: B (A + \sigma V D^{-1} \epsilon) = B A + \sigma U \epsilon, \qquad
    \mathrm{Cov}(\mathrm{vec}\,\Delta W) = \sigma^2 I \otimes U U^T

whatever factors the update was written in: the law is the same for (B Q, Q^-1 A).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import torch
from torch import Tensor

from bayeslora.errors import RunError, UsageError
from bayeslora.posteriors.state import parameters_of, state_of

_HALVINGS = 20  # how far a bracket may be moved from where a user put it


class TFBPosterior:
    r"""A Gaussian on the A of every LoRA update, of one scale; every other parameter is a point.

    Args:
        mean: Parameter name to value; unchanged by anything here.
        root: Name of every A to :math:`R = V D^{-1}` ``[r, r]``, see :func:`noise_root`.
        sigma: Name of every A to its standard deviation of the update, 0 or more.
        record: How sigma was found, as plain values.
    """

    family = "tfb"

    def __init__(
        self,
        mean: Mapping[str, Tensor],
        root: Mapping[str, Tensor],
        sigma: Mapping[str, float],
        record: Mapping[str, Any] | None = None,
    ) -> None:
        self._mean = {name: value.detach().cpu().clone() for name, value in mean.items()}
        self._root, self.sigma, self.record = dict(root), dict(sigma), dict(record or {})
        if self._root.keys() != self.sigma.keys() or not all(value >= 0 for value in self.sigma.values()):
            raise UsageError(f"sigma is {self.sigma}; allowed: 0 or more for each of {', '.join(self._root)}")

    @classmethod
    def around(cls, mean: Mapping[str, Tensor]) -> TFBPosterior:
        """The posterior of sigma 0 around LoRA factors: one SVD an update, for any sigma later.

        Raises:
            UsageError: there is no LoRA update among the parameters.
        """
        ups = {name: name.replace(".lora_A.", ".lora_B.") for name in mean if ".lora_A." in name}
        if not ups or not all(up in mean for up in ups.values()):
            raise UsageError("TFB finds no pairs of lora_A and lora_B among the trainable parameters; it needs LoRA")
        return cls(mean, {down: noise_root(mean[up]) for down, up in ups.items()}, dict.fromkeys(ups, 0.0))

    def scaled(self, sigma: float | Mapping[str, float], record: Mapping[str, Any] | None = None) -> TFBPosterior:
        """The posterior of another sigma: one for all, or by the name of the A, 0 where none is given.

        Args:
            sigma: The standard deviation: one number, or the name of an A to its own.
            record: What is kept of how sigma was found; None keeps the present record.
        """
        given = sigma if isinstance(sigma, Mapping) else dict.fromkeys(self._root, sigma)
        return TFBPosterior(self._mean, self._root, {name: given.get(name, 0.0) for name in self._root}, record)

    def mean(self) -> dict[str, Tensor]:
        """The adapter as it was, name to ``[*shape]``."""
        return dict(self._mean)

    def sample(self, n: int, generator: torch.Generator) -> dict[str, Tensor]:
        """``n`` joint draws, name to ``[n, *shape]``; the first few do not depend on how many follow, nor on sigma.

        Args:
            n: How many draws.
            generator: Source of the noise, on the CPU; the same state gives the same draws.
        """
        draws: dict[str, list[Tensor]] = {name: [] for name in self._root}
        for _ in range(n):
            for name, root in self._root.items():
                mean = self._mean[name]
                noise = root @ torch.randn(mean.shape, generator=generator, device="cpu")
                draws[name].append(mean + (self.sigma[name] * noise).to(mean.dtype))
        points = {name: value.expand(n, *value.shape) for name, value in self._mean.items() if name not in draws}
        return {name: torch.stack(draws[name]) if name in draws else points[name] for name in self._mean}

    def logit_covariance(self, jacobian: Mapping[str, Tensor]) -> Tensor:
        """``J Sigma J^T [B, C-1, C-1]`` for the Jacobian of the contrast logits, name to ``[B, C-1, *shape]``."""
        like = next(iter(jacobian.values()))
        covariance = like.new_zeros(len(like), like.shape[1], like.shape[1])
        for name, root in self._root.items():
            scaled = (self.sigma[name] * root.to(like.device, like.dtype).T @ jacobian[name]).flatten(2)
            covariance += scaled @ scaled.mT
        return covariance

    def state_dict(self) -> dict[str, Any]:
        """The adapter under ``mean/``, R under ``root/``, sigma and its record as plain values."""
        tensors = {**state_of("mean", self._mean), **state_of("root", self._root)}
        return {**tensors, "order": list(self._mean), "sigma": self.sigma, "record": self.record}

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Any]) -> TFBPosterior:
        """The posterior that ``state_dict`` described."""
        mean, root = parameters_of("mean", state), parameters_of("root", state)
        order = {name: mean[name] for name in state["order"]}
        return cls(order, {name: root[name] for name in state["sigma"]}, state["sigma"], state["record"])


def noise_root(up: Tensor) -> Tensor:
    r""":math:`V D^{-1}` ``[r, r]``, float32, of B ``[out, r]``; zero in directions that B does not reach.

    B's rank is numerical: directions that rounding B's entries to its dtype could have made do not count. So an update
    that was never trained, or that lost a direction, gets finite noise where it acts and none elsewhere.
    """
    _, values, basis = torch.linalg.svd(up.detach().cpu().double(), full_matrices=False)
    smallest = values.norm() * torch.finfo(up.dtype).eps  # twice the largest norm that rounding can have
    inverse = torch.where(values > smallest, 1 / values, 0.0)
    root = torch.zeros(up.shape[1], up.shape[1], dtype=torch.float64, device="cpu")
    root[:, : len(values)] = basis.T * inverse
    return root.float()


def largest_accepted(accepted: Callable[[float], bool], low: float, high: float, iterations: int) -> float:
    """The largest value found that is accepted, by bisection; what is returned was itself tested and accepted.

    Acceptance should not come back once it is lost. Where ``low`` is rejected, the bracket is moved down by factors of
    two first.

    Args:
        accepted: Whether a value is accepted.
        low: Expected to be accepted.
        high: Expected to be rejected; where it is accepted, it is the answer.
        iterations: Number of halvings; the answer is within ``(high - low) / 2**iterations`` of the threshold.

    Raises:
        RunError: nothing is accepted, however far the bracket is moved.
    """
    accepted = cache(accepted)
    if accepted(high):
        return high
    first = low * 2.0**-_HALVINGS
    while not accepted(low):
        low, high = low / 2, low
        if low < first:
            raise RunError(f"no sigma down to {low:.1e} keeps the loss within the tolerance; raise the tolerance")
    for _ in range(iterations):
        middle = (low + high) / 2
        low, high = (middle, high) if accepted(middle) else (low, middle)
    return low
