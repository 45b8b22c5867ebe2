r"""The posterior of the last layer's adapters: a normal prior and the likelihood of the training questions alone.

:math:`\log \pi(\theta) = \sum_n \log p(y_n \mid x_n, \theta) - |\theta|^2 / (2 \sigma^2)`. Chains move in :math:`z =
\theta / \sigma`, whose prior is standard normal. Either A and B of both projections are sampled, or B alone, with A
where LoRA's initialisation puts it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from gold.last_layer import FACTORS, Adapters, LastLayer
from torch import Tensor


@dataclass(frozen=True)
class Target:
    """The log density of whitened weights.

    Attributes:
        layer: The last layer, with what reaches it from the training questions.
        initial: Weights by name as LoRA's initialisation draws them ``[*shape]``: shapes, and A where it is fixed.
        prior_std: Standard deviation sigma of the prior.
        sampled: ``AB``, or ``B`` for the ups alone.
    """

    layer: LastLayer
    initial: Mapping[str, Tensor]
    prior_std: float
    sampled: str = "AB"

    @property
    def factors(self) -> list[tuple[Tensor, bool]]:
        """In the order of :class:`Adapters`: the initial value of each factor, and whether it is sampled."""
        values = Adapters.from_names(self.initial)
        held = (values.q_down, values.q_up, values.v_down, values.v_up)
        return [(value, self.sampled == "AB" or "lora_B" in name) for name, value in zip(FACTORS, held, strict=True)]

    @property
    def size(self) -> int:
        """How many weights are sampled."""
        return sum(value.numel() for value, drawn in self.factors if drawn)

    def adapters(self, z: Tensor) -> Adapters:
        """The adapters of whitened weights ``[K, P]``."""
        place, parts = 0, []
        for value, drawn in self.factors:
            if drawn:
                part = z[:, place : place + value.numel()]
                parts.append(self.prior_std * part.view(-1, *value.shape))
                place += value.numel()
            else:
                parts.append(value.expand(len(z), *value.shape))
        return Adapters(*parts)

    def whiten(self, weights: Mapping[str, Tensor]) -> Tensor:
        """Whitened weights ``[K, P]`` of K adapters by their parameters' names ``[K, *shape]``."""
        values = Adapters.from_names(weights)
        held = (values.q_down, values.q_up, values.v_down, values.v_up)
        drawn = [drawn for _, drawn in self.factors]
        return torch.cat([v.flatten(1) for v, d in zip(held, drawn, strict=True) if d], -1) / self.prior_std

    def __call__(self, z: Tensor) -> Tensor:
        """The log density ``[K]`` up to a constant."""
        return self.layer.log_likelihood(self.adapters(z)) - z.square().sum(-1) / 2


def trained(target: Target, start: Tensor, steps: int, learning_rate: float = 0.05) -> Tensor:
    """Whitened weights after ``steps`` of Adam on the likelihood alone, from ``start`` ``[K, P]``."""
    z = start.clone().requires_grad_()
    optimizer = torch.optim.Adam([z], lr=learning_rate)
    for _ in range(steps):
        optimizer.zero_grad()
        (-target.layer.log_likelihood(target.adapters(z)).sum()).backward()
        optimizer.step()
    return z.detach()
