r"""The posterior of a network's adapters: a normal prior and the likelihood of the training questions alone.

:math:`\log \pi(\theta) = \sum_n \log p(y_n \mid x_n, \theta) - |\theta|^2 / (2 \sigma^2)`. Chains move in :math:`z =
\theta / \sigma`, whose prior is standard normal. Either A and B of every projection are sampled, or B alone, with A
where LoRA's initialisation puts it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from gold.network import Network, Weights
from torch import Tensor


@dataclass(frozen=True)
class Target:
    """The log density of whitened weights.

    Attributes:
        network: What the training questions go through.
        initial: Weights by name as LoRA's initialisation draws them ``[*shape]``: shapes, and A where it is fixed.
        prior_std: Standard deviation sigma of the prior.
        sampled: ``AB``, or ``B`` for the ups alone.
    """

    network: Network
    initial: Weights
    prior_std: float
    sampled: str = "AB"

    @property
    def drawn(self) -> list[str]:
        """Names of the weights that are sampled, in the order of the network."""
        return [name for name in self.initial if self.sampled == "AB" or "lora_B" in name]

    @property
    def size(self) -> int:
        """How many weights are sampled."""
        return sum(self.initial[name].numel() for name in self.drawn)

    def weights(self, z: Tensor) -> dict[str, Tensor]:
        """The adapters of whitened weights ``[K, P]``."""
        sizes = [self.initial[name].numel() for name in self.drawn]
        parts = dict(zip(self.drawn, z.split(sizes, -1), strict=True))
        return {
            name: self.prior_std * parts[name].view(-1, *value.shape)
            if name in parts
            else value.expand(len(z), *value.shape)
            for name, value in self.initial.items()
        }

    def whiten(self, weights: Weights) -> Tensor:
        """Whitened weights ``[K, P]`` of K adapters."""
        return torch.cat([weights[name].flatten(1) for name in self.drawn], -1) / self.prior_std

    def __call__(self, z: Tensor) -> Tensor:
        """The log density ``[K]`` up to a constant."""
        return self.network.log_likelihood(self.weights(z)) - z.square().sum(-1) / 2


def trained(target: Target, start: Tensor, steps: int, learning_rate: float = 0.05) -> Tensor:
    """Whitened weights after ``steps`` of Adam on the likelihood alone, from ``start`` ``[K, P]``."""
    z = start.clone().requires_grad_()
    optimizer = torch.optim.Adam([z], lr=learning_rate)
    for _ in range(steps):
        optimizer.zero_grad()
        (-target.network.log_likelihood(target.weights(z)).sum()).backward()
        optimizer.step()
    return z.detach()
