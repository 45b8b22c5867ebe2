r"""A standard deviation for every entry of LoRA's factors: what a mean-field posterior adds to a network.

BLoB's parameterisation is :math:`\Omega = G \circ G` (Wang et al., 2024, section 3.2). G is a parameter of the site
whose weight it belongs to, so that it is trained, saved and resumed like any other.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from bayeslora.models.answer_model import AnswerModel
from bayeslora.models.sites import SiteLinear, product_dtype
from bayeslora.streams import generator
from bayeslora.types import Samples

ROOT = "std_root"  # the last part of G's name, where its weight's is "weight"
FACTORS = {"A": (".lora_A",), "AB": (".lora_A", ".lora_B")}


def add_spread(model: AnswerModel, factors: str, largest: float, seed: int) -> dict[str, nn.Parameter]:
    r"""Give the factors a standard deviation, initially uniform in its root: :math:`G \sim U(\sqrt{s/2}, \sqrt{s})`.

    Args:
        model: The model.
        factors: ``A``, or ``AB``.
        largest: Largest initial standard deviation s; the smallest is half of it.
        seed: Each G has a stream of its own.

    Returns:
        G by the name of its weight, in the order of the network.
    """
    roots = {}
    for site in model.network.modules():
        if isinstance(site, SiteLinear) and site.name.endswith(FACTORS[factors]):
            values = torch.empty(site.weight.shape, device="cpu")  # the same draws on any device
            source = generator(seed, "init", f"{site.name}.{ROOT}")
            values.uniform_((largest / 2) ** 0.5, largest**0.5, generator=source)
            roots[f"{site.name}.weight"] = nn.Parameter(values.to(site.weight.device))
            site.register_parameter(ROOT, roots[f"{site.name}.weight"])
    return roots


def draw_perturbations(std: dict[str, Tensor], draws: Tensor, seed: int) -> Samples:
    r"""S draws of :math:`\Omega \circ \epsilon`, to be added by flipout.

    Args:
        std: Weight name to standard deviation :math:`\Omega`, through which gradients flow.
        draws: Ids of the draws, int64 ``[S]``; :math:`\epsilon` is a function of (seed, id) alone.
        seed: Names the stream of the draws, and of their signs.
    """
    flat = torch.cat([value.flatten() for value in std.values()])  # one operation for all, not one for each
    sources = (generator(seed, "perturbation", draw, device=flat.device) for draw in draws.tolist())
    noise = torch.stack([torch.randn(len(flat), generator=source, device=flat.device) for source in sources])
    product = (flat * noise).to(product_dtype(flat))
    return Samples(draws=draws, seed=seed, perturbations=like(product, std))


def squares(roots: Mapping[str, Tensor]) -> dict[str, Tensor]:
    r"""Standard deviations :math:`\Omega = G \circ G` by name, views of one tensor: for a step, not to be kept."""
    return like(torch.cat([root.flatten() for root in roots.values()]).square(), roots)


def like(flat: Tensor, named: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Parts of a tensor ``[..., sum of sizes]`` in the shapes of some others, ``[..., *shape]``.

    Args:
        flat: The parts, one behind another ``[..., sum of sizes]``.
        named: Name to a tensor of the shape that its part gets.
    """
    parts = flat.split([value.numel() for value in named.values()], -1)
    pairs = zip(named.items(), parts, strict=True)
    return {name: part.unflatten(-1, value.shape) for (name, value), part in pairs}
