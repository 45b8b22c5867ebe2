"""Whether chains have found one law: rank-normalised split R-hat and effective sample sizes (Vehtari et al., 2021).

By arviz (doi 10.1214/20-BA1221), for what predictions are made of rather than for weights, which LoRA's symmetry
(BA = (BM)(M^-1 A)) leaves undetermined: probabilities, log-odds, and entries of BA.
"""

from __future__ import annotations

import warnings
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


def convergence(draws: Tensor) -> Convergence:
    """The diagnostics of quantities ``[K, N, Q]``, K chains of N draws."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # arviz says at its import that it will change
        import arviz

    data = arviz.convert_to_dataset(draws.numpy())
    r_hat = torch.from_numpy(arviz.rhat(data)["x"].values)
    bulk, tail = (torch.from_numpy(arviz.ess(data, method=method)["x"].values) for method in ("bulk", "tail"))
    return Convergence(
        quantities=draws.shape[-1],
        share=float((r_hat <= LIMIT).double().mean()),
        worst=float(r_hat.max()),  # not a number where one is not
        bulk=float(bulk.min()),
        tail=float(tail.min()),
    )
