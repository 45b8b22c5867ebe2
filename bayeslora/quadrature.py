"""Nodes and weights that integrate a function against a standard normal density."""

from functools import lru_cache

import torch
from torch import Tensor

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
        nodes = torch.linspace(-_TRAPEZOID_REACH, _TRAPEZOID_REACH, _TRAPEZOID_NODES, dtype=torch.float64)
        weights = torch.exp(-0.5 * nodes.square())
        return nodes[:, None], weights / weights.sum()
    engine = torch.quasirandom.SobolEngine(dimension, scramble=True, seed=_SOBOL_SEED)
    uniform = engine.draw(2**_SOBOL_LOG2_POINTS, dtype=torch.float64).clamp(1e-12, 1 - 1e-12)
    half = torch.special.ndtri(uniform)
    nodes = torch.cat([half, -half])
    return nodes, torch.full((len(nodes),), 1.0 / len(nodes), dtype=torch.float64)
