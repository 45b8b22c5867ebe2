"""From a normal law over contrast logits to probabilities: by quadrature, by draws, or by the probit approximation."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from math import pi

import torch
from torch import Tensor

from bayeslora.quadrature import normal_draws
from bayeslora.streams import generator
from bayeslora.types import Predictive

LINKS = ("linearised", "probit", "mc")
Link = Callable[[Tensor, Tensor], Predictive]


def link(name: str, samples: int, seed: int) -> Link:
    r"""Mean ``[B, C-1]`` and covariance ``[B, C-1, C-1]`` to a prediction.

    Args:
        name: ``linearised`` integrates (:meth:`~bayeslora.types.Predictive.from_gaussian`); ``mc`` averages over joint
            draws; ``probit`` is :math:`\mathrm{softmax}(f / \sqrt{1 + \pi v / 8})`, v the logits' own variances.
        samples: Number of draws of ``mc``.
        seed: Of the draws.
    """
    links: dict[str, Link] = {
        "linearised": Predictive.from_gaussian,
        "probit": probit,
        "mc": partial(drawn, samples, seed),
    }
    return links[name]


def probit(mean: Tensor, covariance: Tensor) -> Predictive:
    r"""One distribution, :math:`\mathrm{softmax}(f_c / \sqrt{1 + \pi v_c / 8})` (MacKay, 1992).

    The law of contrasts leaves open how the first option's logit varies with the others: here the logits are those of
    the centred law, :math:`f - \bar f`, whose variances do not depend on which option is the first.
    """
    present = torch.nn.functional.pad(mean.isfinite(), (1, 0), value=True).double()
    spread = torch.nn.functional.pad(covariance.double(), (1, 0, 1, 0))
    centre = torch.eye(present.shape[-1], dtype=torch.float64, device=mean.device)
    centre = centre - (present / present.sum(-1, keepdim=True))[:, None, :]
    logits = torch.nn.functional.pad(mean.double(), (1, 0))
    centred = torch.einsum("bij,bj->bi", centre, logits.masked_fill(~present.bool(), 0.0))
    variance = torch.einsum("bij,bjk,bik->bi", centre, spread, centre).clamp(min=0)
    shrunk = centred / (1 + pi / 8 * variance).sqrt()
    return Predictive.from_logits(shrunk.masked_fill(~present.bool(), -torch.inf)[None])


def drawn(samples: int, seed: int, mean: Tensor, covariance: Tensor) -> Predictive:
    """``samples`` joint draws of the logits as members, the same standard normal numbers for all questions of C."""

    def nodes(dimension: int) -> tuple[Tensor, Tensor]:
        source = generator(seed, "laplace", "mc")
        weights = torch.full((samples,), 1 / samples, dtype=torch.float64, device="cpu")
        return torch.randn(samples, dimension, dtype=torch.float64, generator=source, device="cpu"), weights

    contrasts, _ = normal_draws(mean, covariance, nodes)
    return Predictive.from_logits(torch.nn.functional.pad(contrasts, (1, 0)))
