r"""SWAG: a Gaussian over weights from the snapshots of one training run.

Maddox et al., "A Simple Baseline for Bayesian Uncertainty in Deep Learning" (2019); for LoRA, Onal et al., "Gaussian
Stochastic Weight Averaging for Bayesian Low-Rank Adaptation of Large Language Models" (2024). Statistics are float32
whatever the weights are.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor

from bayeslora.errors import RunError, UsageError, require_choice
from bayeslora.posteriors.mixture import Mixture
from bayeslora.posteriors.on_device import OnDevice
from bayeslora.posteriors.point import Point
from bayeslora.posteriors.state import check_same_parameters, parameters_of, state_of

MODES = ("full", "diag", "swa")
DIVISORS = ("kmax", "rows")


@dataclass(frozen=True)
class Preset:
    """What a publication or its release uses.

    Attributes:
        scale: Factor on the covariance ``diag(var) + D^T D / (K - 1)``.
        diag_scale: Factor on the covariance where it is ``diag(var)`` alone.
        divisor: What the low-rank part is divided by, see :class:`SWAGPosterior`.
        rank: Number K of deviations kept.
        samples: Number S of weight samples.
    """

    scale: float
    diag_scale: float
    divisor: str
    rank: int
    samples: int


PRESETS = {
    "maddox": Preset(scale=0.5, diag_scale=1.0, divisor="kmax", rank=20, samples=30),
    "release": Preset(scale=1.0, diag_scale=1.0, divisor="kmax", rank=5, samples=15),  # twice Maddox's covariance
}


@dataclass(frozen=True)
class Layout:
    """Where each parameter lies in one flat vector of P numbers.

    Attributes:
        shapes: Parameter name to shape, in the order of the vector.
    """

    shapes: Mapping[str, tuple[int, ...]]

    @classmethod
    def of(cls, parameters: Mapping[str, Tensor]) -> Layout:
        """The layout of these parameters in their order."""
        return cls({name: tuple(value.shape) for name, value in parameters.items()})

    @property
    def size(self) -> int:
        """Number P of parameters."""
        return sum(map(prod, self.shapes.values()))

    def flatten(self, parameters: Mapping[str, Tensor]) -> Tensor:
        """``[*lead, *shape]`` each to float32 ``[*lead, P]``, on their device."""
        values = ((parameters[name].detach().float(), shape) for name, shape in self.shapes.items())
        return torch.cat([v.reshape(*v.shape[: v.dim() - len(shape)], prod(shape)) for v, shape in values], -1)

    def split(self, flat: Tensor) -> dict[str, Tensor]:
        """The inverse of :meth:`flatten`."""
        parts = flat.split([prod(shape) for shape in self.shapes.values()], -1)
        named = zip(self.shapes.items(), parts, strict=True)
        return {name: part.reshape((*flat.shape[:-1], *shape)) for (name, shape), part in named}


class Moments:
    r"""Running mean, variance and last K deviations of a series of weight snapshots.

    With n snapshots seen so far and a new one w (Welford's update, which keeps small variances of large weights):

    .. math:: \delta = w - m, \quad m \leftarrow m + \frac{\delta}{n + 1}, \quad
        M_2 \leftarrow M_2 + \delta (w - m), \quad D_{n \bmod K} \leftarrow w - m

    so that the variance is :math:`M_2 / n` and a row of D is the deviation from the running mean after its own update:
    the first is zero. (2 + K) P numbers in all.

    Args:
        layout: Names and shapes of the parameters.
        rank: Number K of deviations kept; 0 keeps none.
    """

    def __init__(self, layout: Layout, rank: int) -> None:
        self.layout, self.rank, self.count = layout, rank, 0
        self.mean, self.m2, self.ring = (torch.zeros(*lead, layout.size, device="cpu") for lead in ((), (), (rank,)))

    def to(self, device: torch.device | str) -> None:
        """Move the numbers to another device."""
        self.mean, self.m2, self.ring = (tensor.to(device) for tensor in (self.mean, self.m2, self.ring))

    @property
    def nbytes(self) -> int:
        """Size of the state in bytes."""
        return sum(tensor.nbytes for tensor in (self.mean, self.m2, self.ring))

    @torch.no_grad()
    def update(self, parameters: Mapping[str, Tensor]) -> None:
        """Take in one snapshot.

        Raises:
            UsageError: parameters of other names or shapes.
            RunError: a number that is not finite; the moments are as they were.
        """
        self.check(parameters, "the snapshot")
        snapshot = self.layout.flatten(parameters).to(self.mean.device)
        if not torch.isfinite(snapshot).all():
            bad = [name for name, value in self.layout.split(snapshot).items() if not torch.isfinite(value).all()]
            raise RunError(f"snapshot {self.count + 1} of {bad[0]} is not finite; lower the learning rate")
        delta = snapshot - self.mean
        self.mean.add_(delta, alpha=1 / (self.count + 1))
        deviation = snapshot.sub_(self.mean)
        self.m2.addcmul_(delta, deviation)
        if self.rank:
            self.ring[self.count % self.rank] = deviation
        self.count += 1

    @property
    def variance(self) -> Tensor:
        """Variance of the snapshots ``[P]``, divided by their number."""
        return (self.m2 / max(self.count, 1)).clamp(min=0)

    @property
    def deviations(self) -> Tensor:
        """The deviations kept, oldest first ``[min(n, K), P]``."""
        if self.count <= self.rank:
            return self.ring[: self.count]
        return self.ring.roll(-(self.count % self.rank), 0) if self.rank else self.ring

    def check(self, parameters: Mapping[str, Tensor], what: str) -> None:
        """Refuse parameters of other names or shapes.

        Args:
            parameters: Name to tensor.
            what: What the message calls it.

        Raises:
            UsageError: naming the first difference.
        """
        check_same_parameters(parameters, self.layout.split(self.mean), what)

    def posterior(self, mode: str, scale: float, divisor: str) -> SWAGPosterior:
        """The Gaussian of what was collected, see :class:`SWAGPosterior`; it does not change with later snapshots.

        Args:
            mode: ``full``, ``diag`` or ``swa``, see :class:`SWAGPosterior`.
            scale: Factor on the covariance.
            divisor: By what sums of squared deviations are divided, see :class:`SWAGPosterior`.

        Raises:
            UsageError: fewer than two snapshots (one for ``swa``), or options that are not allowed.
        """
        deviations = self.deviations if mode == "full" else self.ring[:0]
        flat = (self.mean.clone().cpu(), self.variance.cpu(), deviations.clone().cpu())
        return SWAGPosterior(self.layout, *flat, mode, scale, divisor, self.rank, self.count)

    def checkpoints(self) -> Mixture:
        r"""The last min(n, K) snapshots themselves as equal members: a checkpoint ensemble.

        They follow from the deviations: with the mean :math:`m_i` after snapshot i, :math:`w_i = m_i + d_i` and
        :math:`m_{i-1} = m_i - d_i / (i - 1)`.

        Raises:
            UsageError: fewer than two snapshots, or none kept.
        """
        rows = self.deviations.double()
        if len(rows) < 2:
            raise UsageError(
                f"a checkpoint ensemble has {len(rows)} checkpoints; allowed: 2 or more (rank, every, start)"
            )
        mean, members = self.mean.double(), []
        for index, row in zip(range(self.count, self.count - len(rows), -1), rows.flip(0), strict=True):
            members.append(Point(self.layout.split((mean + row).float())))
            mean = mean - row / max(index - 1, 1)
        return Mixture(members[::-1])

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain types from which :meth:`from_state_dict` rebuilds the moments bit for bit."""
        shapes = {name: list(shape) for name, shape in self.layout.shapes.items()}
        plain = {"shapes": shapes, "rank": self.rank, "count": self.count}
        return {**plain, "mean": self.mean, "m2": self.m2, "deviations": self.ring}

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Any]) -> Moments:
        """The moments that ``state_dict`` described."""
        moments = cls(Layout({name: tuple(shape) for name, shape in state["shapes"].items()}), state["rank"])
        moments.count = state["count"]
        for tensor, key in ((moments.mean, "mean"), (moments.m2, "m2"), (moments.ring, "deviations")):
            tensor.copy_(state[key])
        return moments


class SWAGPosterior(OnDevice):
    r"""Gaussian with the mean of the snapshots and their diagonal plus low-rank covariance.

    .. math:: w = m + \sqrt{s} \left( \sqrt{v} \odot z_1 + \frac{D^T z_2}{\sqrt{d}} \right), \qquad
        \Sigma = s \left( \mathrm{diag}(v) + \frac{D^T D}{d} \right)

    with one :math:`z_1 \in R^P` and one :math:`z_2 \in R^K` for all tensors: parameters of different layers are
    correlated. Maddox et al. have s = 1/2. ``diag`` leaves the low-rank part out, ``swa`` is the mean alone.

    Args:
        layout: Names and shapes of the parameters.
        mean: Mean m ``[P]``.
        variance: Variance v ``[P]``, not negative.
        deviations: D ``[rows, P]``, used by ``full``.
        mode: ``full``, ``diag`` or ``swa``.
        scale: Factor s on the covariance, 0 or more.
        divisor: d is K - 1 (``kmax``, as published, however few rows there are) or the number of rows - 1 (``rows``).
        rank: K.
        snapshots: How many snapshots the mean is of.

    Raises:
        UsageError: fewer than two snapshots (one for ``swa``), a scale below 0, a K below 2 with ``full``.
    """

    family = "swag"

    def __init__(
        self,
        layout: Layout,
        mean: Tensor,
        variance: Tensor,
        deviations: Tensor,
        mode: str,
        scale: float,
        divisor: str,
        rank: int,
        snapshots: int,
    ) -> None:
        check_options(mode, scale, divisor, rank)
        least = 1 if mode == "swa" else 2
        if snapshots < least:
            raise UsageError(
                f"SWAG has {snapshots} snapshots, mode {mode} needs {least}; collect earlier (start), oftener (every) "
                "or train longer"
            )
        self.layout, self.mode, self.scale, self.divisor = layout, mode, scale, divisor
        self.rank, self.snapshots = rank, snapshots
        self._mean, self._variance, self._deviations = mean, variance, deviations

    @property
    def _factors(self) -> tuple[Tensor, Tensor]:
        """Standard deviations ``[P]`` and low-rank rows ``[rows, P]``: the covariance is diag(a^2) + U^T U."""
        scale = 0.0 if self.mode == "swa" else self.scale
        divisor = self.rank - 1 if self.divisor == "kmax" else len(self._deviations) - 1
        low_rank = self._deviations * (scale / divisor) ** 0.5 if len(self._deviations) else self._deviations
        return (scale * self._variance).sqrt(), low_rank

    def mean(self) -> dict[str, Tensor]:
        """The mean of the snapshots, name to ``[*shape]``."""
        return self.layout.split(self._mean)

    def variance(self) -> dict[str, Tensor]:
        """The variance of every parameter under the posterior: the diagonal of the covariance, name to ``[*shape]``."""
        deviation, low_rank = self._factors
        return self.layout.split(deviation.square() + low_rank.square().sum(0))

    def sample(self, n: int, generator: torch.Generator) -> dict[str, Tensor]:
        """``n`` joint draws, name to ``[n, *shape]``; the first few do not depend on how many follow.

        Args:
            n: How many draws.
            generator: Source of the noise, on the CPU; the same state gives the same draws.
        """
        draws = []
        for _ in range(n):
            z1 = torch.randn(self.layout.size, generator=generator, device="cpu")
            draws.append(self.at(z1, torch.randn(len(self._deviations), generator=generator, device="cpu")))
        return self.layout.split(torch.stack(draws))

    def at(self, z1: Tensor, z2: Tensor) -> Tensor:
        """The flat weights ``[P]`` that standard normal ``z1 [P]`` and ``z2 [rows]`` stand for.

        Args:
            z1: Standard normal numbers of the diagonal part ``[P]``.
            z2: Standard normal numbers of the low-rank part ``[rows]``.
        """
        deviation, low_rank = self._factors
        return self._mean + deviation * z1 + z2 @ low_rank

    def log_prob(self, value: Mapping[str, Tensor], jitter: float = 0.0) -> Tensor:
        """Log-density of parameters, float64 scalar.

        Args:
            value: Parameter name to value.
            jitter: Added to the diagonal of the covariance.

        Raises:
            UsageError: a parameter has no variance, so that there is no density.
        """
        check_same_parameters(value, self.mean(), "the value")
        deviation, low_rank = (factor.double() for factor in self._factors)
        diagonal = deviation.square() + jitter
        if (diagonal == 0).any():
            raise UsageError("SWAG's covariance has zeros on its diagonal, so it has no density; give a jitter above 0")
        residual = self.layout.flatten(value).cpu().double() - self._mean.double()
        whitened = low_rank / diagonal  # Woodbury: only a [rows, rows] matrix is factorised
        root = torch.linalg.cholesky(
            torch.eye(len(low_rank), dtype=torch.float64, device="cpu") + whitened @ low_rank.T
        )
        inner = torch.linalg.solve_triangular(root, (whitened @ residual)[:, None], upper=False)
        square = (residual.square() / diagonal).sum() - inner.square().sum()
        log_det = diagonal.log().sum() + 2 * root.diagonal().log().sum()
        return -0.5 * (square + log_det + self.layout.size * math.log(2 * math.pi))

    def logit_covariance(self, jacobian: Mapping[str, Tensor]) -> Tensor:
        """``J Sigma J^T [B, C-1, C-1]`` for the Jacobian of the contrast logits, name to ``[B, C-1, *shape]``."""
        like = next(iter(jacobian.values()))
        place = like.device, like.dtype
        deviation, low_rank = self.placed(place, lambda: [self.layout.split(f.to(*place)) for f in self._factors])
        covariance = like.new_zeros(len(like), like.shape[1], like.shape[1])
        projected = like.new_zeros(len(like), like.shape[1], len(self._deviations))
        for name, own in jacobian.items():
            rows = own.reshape(*own.shape[:2], -1)
            scaled = rows * deviation[name].flatten()
            covariance += scaled @ scaled.mT
            projected += rows @ low_rank[name].reshape(len(self._deviations), rows.shape[-1]).T
        return covariance + projected @ projected.mT

    def state_dict(self) -> dict[str, Any]:
        """Mean, variance and deviations by parameter, and the options."""
        tensors = {"mean": self._mean, "variance": self._variance, "deviations": self._deviations}
        state: dict[str, Any] = {}
        for kind, flat in tensors.items():
            state |= state_of(kind, self.layout.split(flat))
        options = {"mode": self.mode, "scale": self.scale, "divisor": self.divisor}
        return {**state, **options, "rank": self.rank, "snapshots": self.snapshots, "order": list(self.layout.shapes)}

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Any]) -> SWAGPosterior:
        """The posterior that ``state_dict`` described."""
        mean = parameters_of("mean", state)
        layout = Layout({name: tuple(mean[name].shape) for name in state["order"]})
        flat = [layout.flatten(parameters_of(kind, state)) for kind in ("mean", "variance", "deviations")]
        mean_, variance, deviations = flat
        options = (state[key] for key in ("mode", "scale", "divisor", "rank", "snapshots"))
        return cls(layout, mean_, variance, deviations, *options)


def check_options(mode: str, scale: float, divisor: str, rank: int) -> None:
    """Refuse options that make no Gaussian.

    Args:
        mode: ``full``, ``diag`` or ``swa``, see :class:`SWAGPosterior`.
        scale: Factor on the covariance.
        divisor: By what sums of squared deviations are divided, see :class:`SWAGPosterior`.
        rank: Most deviations that are kept.

    Raises:
        UsageError: an unknown mode or divisor, a negative scale, too small a rank.
    """
    require_choice("SWAG's mode", mode, MODES)
    if not scale >= 0:
        raise UsageError(f"SWAG's scale is {scale}; allowed: 0 or more (0.5 as published, 1.0 as released)")
    require_choice("SWAG's divisor", divisor, DIVISORS)
    if rank < (2 if mode == "full" else 0):
        raise UsageError(f"SWAG's rank K is {rank} in mode {mode}; allowed: 2 or more for full, 0 or more otherwise")
