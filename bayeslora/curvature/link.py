"""From a normal law over contrast logits to probabilities: by quadrature, by draws, or by the probit approximation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from math import pi

import torch
from torch import Tensor

from bayeslora.quadrature import normal_draws
from bayeslora.streams import generator
from bayeslora.types import Gaussian, Predictive

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
        "mc": partial(monte_carlo, samples, seed),
    }
    return links[name]


def probit(mean: Tensor, covariance: Tensor) -> Predictive:
    r"""One distribution, :math:`\mathrm{softmax}(f_c / \sqrt{1 + \pi v_c / 8})` (MacKay, 1992).

    The law of contrasts leaves open how the first option's logit varies with the others: here the logits are those of
    the centred law, :math:`f - \bar f`, whose variances do not depend on which option is the first.

    Args:
        mean: Mean of the contrasts ``[B, C-1]``; minus infinity at absent options.
        covariance: Covariance of the contrasts ``[B, C-1, C-1]``.
    """
    present = torch.nn.functional.pad(mean.isfinite(), (1, 0), value=True).double()
    spread = torch.nn.functional.pad(covariance.double(), (1, 0, 1, 0))
    centre = torch.eye(present.shape[-1], dtype=torch.float64, device=mean.device)
    centre = centre - (present / present.sum(-1, keepdim=True))[:, None, :]
    logits = torch.nn.functional.pad(mean.double(), (1, 0))
    centred = torch.einsum("bij,bj->bi", centre, logits.masked_fill(~present.bool(), 0.0))
    variance = torch.einsum("bij,bjk,bik->bi", centre, spread, centre).clamp(min=0)
    shrunk = centred / (1 + pi / 8 * variance).sqrt()
    found = Predictive.from_logits(shrunk.masked_fill(~present.bool(), -torch.inf)[None])
    return Probit(found.log_probs, found.weights, found.logits, law=Gaussian(mean, covariance))


@dataclass(frozen=True)
class Probit(Predictive):
    """The probit approximation's one distribution, which knows the law it stands for.

    Attributes:
        law: The normal law over contrast logits.
    """

    law: Gaussian | None = None

    def tempered(self, temperature: float | Tensor) -> Predictive:
        """The approximation of the law of the divided logits, N(f/T, S/T^2): dividing after shrinking is another."""
        assert self.law is not None
        present = self.law.mean.isfinite()
        mean = self.law.mean.masked_fill(~present, 0.0) / temperature  # infinity would make T's gradient NaN
        return probit(mean.masked_fill(~present, -torch.inf), self.law.cov / temperature**2)

    def map(self, function: Callable[[Tensor], Tensor]) -> Probit:
        """The same prediction with every tensor replaced by what ``function`` makes of it."""
        assert self.law is not None
        law = Gaussian(function(self.law.mean), function(self.law.cov))
        plain = super().map(function)
        return Probit(plain.log_probs, plain.weights, plain.logits, law=law)


def monte_carlo(samples: int, seed: int, mean: Tensor, covariance: Tensor) -> Predictive:
    """``samples`` joint draws of the logits as members, the same standard normal numbers for all questions of C.

    Args:
        samples: Number of draws S.
        seed: Names the stream of random numbers; the same seed gives the same result.
        mean: Mean of the contrasts ``[B, C-1]``; minus infinity at absent options.
        covariance: Covariance of the contrasts ``[B, C-1, C-1]``.
    """

    def nodes(dimension: int) -> tuple[Tensor, Tensor]:
        """Standard normal numbers ``[S, dimension]``, and equal weights ``[S]``."""
        source = generator(seed, "laplace", "mc")
        weights = torch.full((samples,), 1 / samples, dtype=torch.float64, device="cpu")
        return torch.randn(samples, dimension, dtype=torch.float64, generator=source, device="cpu"), weights

    contrasts, _ = normal_draws(mean, covariance, nodes)
    return Predictive.from_logits(torch.nn.functional.pad(contrasts, (1, 0)))
