"""LoRA sites: the places where a trained or sampled weight meets activations.

peft builds plain LoRA layers. Their ``lora_A``, ``lora_B`` and dropout modules, and any other trainable ``nn.Linear``
(a classification head), are replaced by the subclasses below, which hold the same parameters and know two things more:
how to apply S weight sets to S groups of rows at once, and how to take noise from a hash instead of a generator.
No forward is patched, so 4-bit, 8-bit and plain bases take the same path, and peft saves and loads them as ever.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from bayeslora.errors import UsageError
from bayeslora.models.noise import KnownSites, Tokens, dropout_factors, signs

ADAPTER = "default"
_LAYER = re.compile(r".*?\.\d+(?=\.)")
_SIGNS = 1 << 24  # tells the streams of signs from those of dropout


@dataclass(frozen=True, kw_only=True)
class SiteState:
    """What the rows that reach the sites are.

    Attributes:
        groups: Number S of weight sets; the rows are sample-major, S groups of equal size.
        weights: Parameter name to its S values ``[S, *shape]``; sites that are not named use their own parameter.
        keys: Noise key of every row ``[S * R]``, or None for no noise.
        positions: Position of every token counted from the last ``[S * R, T]``, alongside ``keys``.
        perturbations: Weight name to S values ``[S, *shape]`` that are added with signs of their own for every token.
        coherent: Rows of one group share their key and their positions are all one: a draw is one function.
        mask: Which tokens sum a row up: the real ones of its prompt ``[R, T]``; None where the batch has no mask.
        dropout: Whether dropout is among the noise.
        tail: Only the ends of rows are met, where labels of several tokens are predicted; T is their length.
    """

    groups: int = 1
    weights: Mapping[str, Tensor] = field(default_factory=dict)
    keys: Tensor | None = None
    positions: Tensor | None = None
    perturbations: Mapping[str, Tensor] = field(default_factory=dict)
    coherent: bool = False
    mask: Tensor | None = None
    dropout: bool = True
    tail: bool = False
    tokens: dict[bool, Tokens] = field(default_factory=dict, init=False, repr=False, compare=False)

    def noisy_tokens(self, last: bool, known: KnownSites) -> Tokens | None:
        """All tokens to draw noise for, or the ``last`` of each row alone; None where there is no noise.

        It is one object for the whole pass and its recomputation.

        Args:
            last: Whether noise is drawn for the last token of each row alone.
            known: The sites that are known to ask for noise.
        """
        if self.keys is None or self.positions is None:
            return None
        if last not in self.tokens:
            positions = torch.ones_like(self.positions[:, :1]) if last else self.positions
            self.tokens[last] = Tokens(self.keys, positions, known)
        return self.tokens[last]


class SiteContext:
    """The state that all sites of one model share, valid for one forward pass and its recomputation."""

    def __init__(self) -> None:
        self.state = SiteState()
        self._known = {last: KnownSites() for last in (False, True)}

    def noisy_tokens(self, last: bool) -> Tokens | None:
        """What noise is drawn for in this pass: all tokens, or the ``last`` of each row; None for no noise."""
        return self.state.noisy_tokens(last, self._known[last])

    def using(self, state: SiteState) -> _Using:
        """Within the block, sites act on ``state``."""
        return _Using(self, state)


class _Using:
    """A block in which a context has a given state; entered once more whenever a layer is recomputed."""

    def __init__(self, context: SiteContext, state: SiteState) -> None:
        self.context, self.state = context, state
        self.previous: list[SiteState] = []

    def __enter__(self) -> None:
        self.previous.append(self.context.state)
        self.context.state = self.state

    def __exit__(self, *_: object) -> None:
        self.context.state = self.previous.pop()


class SiteLinear(nn.Linear):
    """A linear map with its own weight, or with S weights for S groups of rows.

    A stacked weight ``[S, out, in]`` may be the parameter itself (members trained together) or be supplied for one
    pass through the context (posterior samples). Group s of the rows meets weight s. A perturbation D of the weight is
    added by flipout (Wen et al., 2018), with signs r and q for every token: ``W x + (D (x * r)) * q``.
    """

    name: str
    site: int
    block: str
    context: SiteContext

    @classmethod
    def adopt(cls, linear: nn.Linear, name: str, site: int, context: SiteContext) -> SiteLinear:
        """A site that holds the parameters of ``linear``; ``name`` is its module path without the adapter's name.

        Args:
            linear: The layer that is replaced.
            name: Its module path without the adapter's name.
            site: Number of the site; different sites have unrelated noise.
            context: Holds what the rows of a pass are; all sites of a model share it.
        """
        module = cls(linear.in_features, linear.out_features, bias=False, device="meta")
        module.weight, module.bias = linear.weight, linear.bias
        module.name, module.site, module.block, module.context = name, site, block_of(name), context
        return module.train(linear.training)

    def forward(self, x: Tensor, rows: Tensor | None = None) -> Tensor:
        """``x [S * N, ..., in]`` to ``[S * N, ..., out]``, or to the outputs numbered ``rows [K]`` alone."""
        weight, bias = self._value("weight", self.weight), self._value("bias", self.bias)
        if rows is not None:
            weight, bias = weight[..., rows, :], None if bias is None else bias[..., rows]
        perturbation = self.context.state.perturbations.get(f"{self.name}.weight")
        if perturbation is not None:
            x = x.to(product_dtype(x))  # once for both products
        y = self._linear(x, weight, bias)
        return y if perturbation is None else y + self._flipped(x, perturbation, rows)

    def _flipped(self, x: Tensor, perturbation: Tensor, rows: Tensor | None) -> Tensor:
        """What a perturbation ``[S, out, in]`` adds to the output."""
        arriving, leaving = (_signs(self, x, side, channels) for side, channels in enumerate(perturbation.shape[:0:-1]))
        if rows is not None:
            perturbation, leaving = perturbation[:, rows], leaving[..., rows]
        # A head is read outside of autocast, which perturbations are drawn in.
        return self._linear(x * arriving, perturbation.to(x.dtype), None) * leaving

    def _linear(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        groups = self.context.state.groups
        if groups == 1 and weight.dim() == 3:
            weight = weight[0]
        if weight.dim() == 2 and (bias is None or bias.dim() == 1):
            return nn.functional.linear(x, weight, bias)
        weight = weight.expand(groups, -1, -1) if weight.dim() == 2 else weight
        y = torch.bmm(x.reshape(groups, -1, x.shape[-1]), weight.mT)
        if bias is not None:
            y = y + (bias if bias.dim() == 2 else bias[None])[:, None, :]
        return y.reshape(*x.shape[:-1], y.shape[-1])

    def _value(self, kind: str, own: Any) -> Any:
        return None if own is None else self.context.state.weights.get(f"{self.name}.{kind}", own)


class SiteDropout(nn.Dropout):
    """Dropout whose mask is a function of example, position, draw and site; active when the state asks for it.

    The module's train and eval modes do not matter: noise is asked for, pass by pass.
    """

    noisy = True  # what a draw changes, for the fan-out to find
    site: int
    block: str
    context: SiteContext

    @classmethod
    def adopt(cls, dropout: nn.Dropout, name: str, site: int, context: SiteContext) -> SiteDropout:
        """A site with the rate of ``dropout``; ``site`` tells its noise from that of the others.

        Args:
            dropout: The layer that is replaced.
            name: Its module path without the adapter's name.
            site: Number of the site; different sites have unrelated noise.
            context: Holds what the rows of a pass are; all sites of a model share it.
        """
        module = cls(dropout.p)
        module.site, module.block, module.context = site, block_of(name), context
        return module.train(dropout.training)

    def forward(self, input: Tensor) -> Tensor:
        """``input [N, T, D]`` or, at the answer position, ``[N, D]``."""
        tokens = self.context.noisy_tokens(input.dim() == 2)
        if tokens is None or self.p == 0 or not self.context.state.dropout:
            return input
        factors = dropout_factors(tokens, self.site, input.shape[-1], self.p, input.dtype, self.block)
        return input * factors.view_as(input)


def _signs(module: SiteLinear, x: Tensor, side: int, channels: int) -> Tensor:
    """Signs for ``channels`` channels of every token of ``x``, in its dtype: of what arrives (0) or leaves (1)."""
    tokens = module.context.noisy_tokens(x.dim() == 2)
    if tokens is None:
        raise ValueError("perturbations need noise keys")
    flips = signs(tokens, _SIGNS + 2 * module.site + side, channels, x.dtype, module.block)
    return flips.reshape(*x.shape[:-1], channels)


def product_dtype(x: Tensor) -> torch.dtype:
    """What a matrix product of ``x`` is computed in: autocast's dtype where it is on. Signs lose nothing in it."""
    on = torch.is_autocast_enabled(x.device.type) and x.dtype == torch.float32
    return torch.get_autocast_dtype(x.device.type) if on else x.dtype


def block_of(name: str) -> str:
    """The layer that a module's path leads through, such as ``model.layers.3``; nothing outside of layers."""
    found = _LAYER.match(name)
    return found[0] if found else ""


def install_sites(network: nn.Module, context: SiteContext) -> list[str]:
    """Replace the trainable linear maps and LoRA dropouts of a peft model by sites.

    Args:
        network: A peft model with one plain LoRA adapter.
        context: The state the sites will share.

    Returns:
        Names of the sites' modules in order, without the adapter's name.

    Raises:
        UsageError: a kind of LoRA whose parameters are not plain linear maps.
    """
    _refuse_variants(network)
    names = []
    for path, module in list(network.named_modules()):
        parent = network.get_submodule(path.rpartition(".")[0])
        leaf = path.rpartition(".")[2]
        if type(module) is nn.Linear and module.weight.requires_grad:
            names.append(plain_name(path))
            _set(parent, leaf, SiteLinear.adopt(module, names[-1], len(names), context))
        elif type(module) is nn.Dropout and isinstance(parent, nn.ModuleDict) and ".lora_dropout." in f".{path}":
            _set(parent, leaf, SiteDropout.adopt(module, plain_name(path), len(names), context))
    return names


def plain_name(name: str) -> str:
    """A parameter's or module's name without the adapter's: the name peft gives it on disk."""
    return name.replace(".modules_to_save", "").replace(f".{ADAPTER}", "")


def _set(parent: nn.Module, leaf: str, module: nn.Module) -> None:
    if isinstance(parent, nn.ModuleDict | nn.ModuleList | nn.Sequential):
        parent._modules[leaf] = module
    else:
        setattr(parent, leaf, module)


def _refuse_variants(network: nn.Module) -> None:
    from peft.tuners.lora import LoraLayer
    from peft.tuners.lora.layer import ParamWrapper

    for path, module in network.named_modules():
        if not isinstance(module, LoraLayer):
            continue
        variants = {type(v).__name__ for v in getattr(module, "lora_variant", {}).values()}
        if len(module.lora_embedding_A):
            variants.add("embedding LoRA")
        if isinstance(module, ParamWrapper):
            variants.add("parameter (mixture-of-experts) LoRA")
        if variants:
            kinds = ", ".join(sorted(variants))
            raise UsageError(
                f"{path} uses {kinds}; allowed: plain LoRA on linear layers. Name them, for example "
                "target_modules (--model.lora.target_modules [q_proj, v_proj]), or train a plain LoRA adapter"
            )
