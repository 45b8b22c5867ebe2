"""Integrals against a normal density by nodes and weights, and the eigendecomposition of its covariance."""

from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor

from bayeslora.errors import RunError

Nodes = Callable[[int], tuple[Tensor, Tensor]]

_TRAPEZOID_NODES = 513
_TRAPEZOID_REACH = 8.5  # standard deviations; the mass outside is 2e-17
_SOBOL_LOG2_POINTS = 12
_SOBOL_SEED = 0


@lru_cache(maxsize=16)
def normal_nodes(dimension: int) -> tuple[Tensor, Tensor]:
    r"""Nodes :math:`z_s` and weights :math:`w_s` with :math:`\sum_s w_s g(z_s) \approx E[g(z)]`, z ~ N(0, I).

    One dimension: the trapezoid rule on 513 nodes within 8.5 standard deviations, which for a softmax link is exact to
    1e-11 while the logit's standard deviation is below 20. More dimensions: 2^12 scrambled Sobol points and their
    mirror images under a fixed seed, so that the result is a deterministic, differentiable function of the Gaussian.

    Args:
        dimension: Number of dimensions, at least 1.

    Returns:
        Nodes ``[S, dimension]`` and weights ``[S]`` that sum to one, both float64 on the CPU.
    """
    if dimension == 1:
        nodes = torch.linspace(-_TRAPEZOID_REACH, _TRAPEZOID_REACH, _TRAPEZOID_NODES, dtype=torch.float64, device="cpu")
        weights = torch.exp(-0.5 * nodes.square())
        return nodes[:, None], weights / weights.sum()
    engine = torch.quasirandom.SobolEngine(dimension, scramble=True, seed=_SOBOL_SEED)
    uniform = engine.draw(2**_SOBOL_LOG2_POINTS, dtype=torch.float64).clamp(1e-12, 1 - 1e-12)
    half = torch.special.ndtri(uniform)
    nodes = torch.cat([half, -half])
    return nodes, torch.full((len(nodes),), 1.0 / len(nodes), dtype=torch.float64, device="cpu")


def normal_draws(mean: Tensor, cov: Tensor, nodes: Nodes = normal_nodes) -> tuple[Tensor, Tensor]:
    r"""Draws :math:`\mu + R z_s` of normal laws that may lack some dimensions, :math:`R R^T` the covariance.

    A law of d present dimensions takes the nodes for d dimensions whatever stands beside it, so that its draws do not
    depend on the other laws or on the number of columns K that they need.

    Args:
        mean: ``[B, K]``; minus infinity where a law has no such dimension.
        cov: ``[B, K, K]``, symmetric positive semi-definite.
        nodes: From a number of dimensions d to nodes ``[S, d]`` and their weights ``[S]``.

    Returns:
        Draws, float64 ``[S, B, K]``, minus infinity where the mean is, and weights ``[S]``. Where laws of a batch have
        different nodes the weights are ``[S, B]``, S is the larger number, and what a law lacks of it weighs nothing.
    """
    present = mean != -torch.inf
    counts = present.sum(-1)
    order = present.int().argsort(dim=-1, descending=True, stable=True)  # a law's own dimensions first
    kinds = [(d, counts == d) for d in counts.unique().tolist() or [mean.shape[-1]]]
    found = [_draws(mean[rows], cov[rows], order[rows, :d], nodes) for d, rows in kinds]
    if len(found) == 1:
        return found[0]
    size = max(len(own_weights) for _, own_weights in found)
    draws = torch.full((size, *mean.shape), -torch.inf, dtype=torch.float64, device=mean.device)
    weights = torch.zeros(size, len(mean), dtype=torch.float64, device=mean.device)
    for (_, rows), (own, own_weights) in zip(kinds, found, strict=True):
        draws[:, rows] = torch.cat([own, own[:1].expand(size - len(own), -1, -1)])
        weights[: len(own), rows] = own_weights[:, None]
    alike = all(torch.equal(own_weights, found[0][1]) for _, own_weights in found)
    return draws, found[0][1] if alike else weights


def _draws(mean: Tensor, cov: Tensor, own: Tensor, nodes: Nodes) -> tuple[Tensor, Tensor]:
    """Draws ``[S, b, K]`` of laws over the d dimensions ``own [b, d]`` each, and their weights ``[S]``."""
    d, row = own.shape[-1], torch.arange(len(own), device=own.device)
    points, weights = (t.to(cov.device) for t in nodes(max(d, 1)))
    values, vectors = eigh(cov[row[:, None, None], own[:, :, None], own[:, None, :]].double())
    root = vectors * values.clamp(min=0).sqrt()[:, None, :]
    contrasts = mean.gather(-1, own).double() + torch.einsum("bij,sj->sbi", root, points[:, :d])
    wide = torch.full((len(points), *mean.shape), -torch.inf, dtype=torch.float64, device=mean.device)
    return wide.scatter(-1, own.expand(len(points), -1, -1), contrasts), weights


def eigh(matrices: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues ``[..., d]``, smallest first, and eigenvectors ``[..., d, d]`` of symmetric matrices ``[..., d, d]``.

    A GPU's solvers are iterative and may end without a result where LAPACK has one: the CPU is asked then.

    Raises:
        RunError: there is none, as for numbers that are not finite.
    """
    try:
        values, vectors = torch.linalg.eigh(matrices)
    except torch.linalg.LinAlgError as error:
        if matrices.device.type == "cpu":
            raise RunError(f"a matrix {list(matrices.shape)} has no eigendecomposition: {error}") from error
        values, vectors = (found.to(matrices.device) for found in eigh(matrices.cpu()))
    return values, vectors
