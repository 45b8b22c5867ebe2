"""Whether chains have found one law: rank-normalised split R-hat and effective sample sizes (Vehtari et al., 2021).

By arviz (doi 10.1214/20-BA1221), for what predictions are made of rather than for weights, which LoRA's symmetry
(BA = (BM)(M^-1 A)) leaves undetermined: probabilities, log-odds, and entries of BA.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

LIMIT, MOST, SHARE, SIZE = 1.01, 1.05, 0.95, 400


@dataclass(frozen=True)
class Convergence:
    """What is asked of a set of quantities.

    Attributes:
        quantities: How many there are.
        share: Share with an R-hat of at most ``LIMIT``; one that does not vary has none, and counts as above.
        worst: The largest R-hat.
        bulk: The least effective sample size of a mean, over the quantities.
        tail: The least effective sample size of the 5 % and 95 % quantiles.
    """

    quantities: int
    share: float
    worst: float
    bulk: float
    tail: float

    @property
    def converged(self) -> bool:
        """``SHARE`` of the quantities within ``LIMIT``, none above ``MOST``, and effective sizes of ``SIZE``."""
        return self.share >= SHARE and self.worst <= MOST and self.bulk >= SIZE


@dataclass(frozen=True)
class Diagnostics:
    """R-hat and effective sample sizes of Q quantities.

    Attributes:
        r_hat: Rank-normalised split R-hat ``[Q]``; not a number for a quantity that does not vary.
        bulk: Effective sample size of the mean ``[Q]``.
        tail: That of the 5 % and 95 % quantiles, the smaller one ``[Q]``.
    """

    r_hat: Tensor
    bulk: Tensor
    tail: Tensor

    @classmethod
    def joined(cls, parts: Iterable[Diagnostics]) -> Diagnostics:
        """Those of several sets of quantities, one after another."""
        return cls(*map(torch.cat, zip(*((one.r_hat, one.bulk, one.tail) for one in parts), strict=True)))

    @property
    def summary(self) -> Convergence:
        """The numbers that decide."""
        return Convergence(
            quantities=len(self.r_hat),
            share=float((self.r_hat <= LIMIT).double().mean()),
            worst=float(self.r_hat.max()),  # not a number where one is not
            bulk=float(self.bulk.min()),
            tail=float(self.tail.min()),
        )


def diagnostics(draws: Tensor) -> Diagnostics:
    """The diagnostics of quantities ``[K, N, Q]``, K chains of N draws."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # arviz says at its import that it will change
        import arviz

    data = arviz.convert_to_dataset(draws.numpy())
    sizes = (arviz.ess(data, method=method)["x"].values for method in ("bulk", "tail"))
    return Diagnostics(*map(torch.from_numpy, (arviz.rhat(data)["x"].values, *sizes)))
