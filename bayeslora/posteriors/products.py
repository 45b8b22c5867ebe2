"""How far apart low-rank updates are: inner products of BA, which is never formed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

A, B = "lora_A", "lora_B"


def product_gram(members: Sequence[Mapping[str, Tensor]]) -> Tensor:
    r"""Inner products of the low-rank updates of M sets of weights, summed over the adapted layers.

    .. math:: G_{ij} = \sum_l \langle B_{il} A_{il}, B_{jl} A_{jl} \rangle_F
              = \sum_l \operatorname{tr}\left((B_{il}^T B_{jl}) (A_{jl} A_{il}^T)\right),

    from r-by-r matrices: :math:`O(M^2 r^2 (d_{in} + d_{out}))` instead of M products of the layer's size. The factor
    alpha/r, equal for all layers, is left out.

    Args:
        members: For each of M members, name to value: ``...lora_A.weight [r, d_in]`` and ``...lora_B.weight
            [d_out, r]``. Other parameters are passed over.

    Returns:
        G, float64 ``[M, M]`` on the CPU; zero where nothing is low-rank.
    """
    gram = torch.zeros(len(members), len(members), dtype=torch.float64, device="cpu")
    for name in members[0]:
        if A not in name:
            continue
        a, b = (
            torch.stack([member[key].detach().double() for member in members]) for key in (name, name.replace(A, B))
        )
        inner = torch.einsum("ior,jos->ijrs", b, b) * torch.einsum("ird,jsd->ijrs", a, a)
        gram += inner.sum((-2, -1)).cpu()
    return gram


def cosine(gram: Tensor) -> Tensor:
    r"""Cosines :math:`G_{ij} / \sqrt{G_{ii} G_{jj}}` ``[M, M]``; NaN where a member is zero, as at initialisation."""
    norm = gram.diagonal().sqrt()
    return gram / norm / norm[:, None]
