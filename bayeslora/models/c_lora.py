r"""The sites of C-LoRA (Rahmati et al., 2025): a random r x r matrix E between A and B, whose law depends on the input.

The update of a site is :math:`s B E A x`, with :math:`E \sim N(\mu(c), \mathrm{diag}\,\sigma(c)^2)` and c a summary of
:math:`z = A x`. E acts on what arrives at B, by a hook in front of it; A and B stay plain LoRA sites, and so do the two
linear maps behind :math:`\mu` and :math:`\sigma`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, logsigmoid, relu

from bayeslora.errors import require_choice
from bayeslora.models.answer_model import AnswerModel
from bayeslora.models.c_lora_stack import ContextualStack, stacked
from bayeslora.models.noise import normal
from bayeslora.models.sites import ADAPTER, SiteContext, SiteLinear, block_of, plain_name
from bayeslora.streams import generator

CONTEXTS = ("token", "sequence", "last", "free")
INITS = ("lora", "release")
_SITES = 1 << 20  # tells the noise of E from that of dropout


class ContextualModule(nn.Module):
    r"""The law of one site's E, and its action on :math:`z = A x`.

    .. math:: (\mu, \rho) = W_2 \mathrm{relu}(W_1 c + b_1) + b_2, \qquad \sigma = \mathrm{sigmoid}(\rho)^2

    with :math:`W_1 \in R^{C \times r}` and :math:`W_2 \in R^{2 r^2 \times C}`; at r = 8 and C = 64 these are 8,896
    numbers. The context c is

    - ``token``: every token's own z. E is used once a token, so that :math:`u = E z` is drawn instead of E: independent
      normals of mean :math:`\mu z` and variance :math:`\sum_j \sigma_{ij}^2 z_j^2`, the same law from r numbers;
    - ``sequence``: the mean of z over a row's tokens, and one E for the row;
    - ``last``: z of the row's last token, and one E for the row;
    - ``free``: nothing (the paper's ablation FE): the law is :math:`b_2` alone, held as the weight of ``out``, and E is
      drawn as for ``token``.

    At the answer position, where a row is one token, its z is the context. A coherent draw fixes
    :math:`\epsilon` of :math:`E = \mu + \sigma \circ \epsilon` for all rows and tokens. Without noise E is :math:`\mu`.

    Args:
        name: Module path without the adapter's name.
        number: Number of the site, which tells its noise from that of the others.
        rank: r.
        context: Which context.
        width: C.
        sites: The state that the model's sites share.
    """

    noisy = True  # what a draw changes, for the fan-out to find

    def __init__(self, name: str, number: int, rank: int, context: str, width: int, sites: SiteContext) -> None:
        super().__init__()
        self.number, self.rank, self.width, self.context, self.sites = _SITES + number, rank, width, context, sites
        self.name, self.block = name, block_of(name)
        self.recorded: Tensor | None = None
        self.recording, self.every_token = False, False
        self.shared: dict[str, Tensor] = {}  # the maps' parameters within a stack of all sites', while recording
        if context == "free":
            self.out = _linear(1, 2 * rank**2, False, f"{name}.out", sites)
        else:
            self.hidden = _linear(rank, width, True, f"{name}.hidden", sites)
            self.out = _linear(width, 2 * rank**2, True, f"{name}.out", sites)

    def law(self, context: Tensor) -> tuple[Tensor, Tensor]:
        r"""Mean :math:`\mu` and :math:`\rho`, both ``[..., r * r]`` row by row, of E at contexts ``[..., r]``."""
        free = self.context == "free"
        features = torch.ones_like(context[..., :1]) if free else relu(self._mapped("hidden", context))
        mean, rho = self._mapped("out", features).chunk(2, -1)
        return mean, rho

    def maps(self) -> dict[str, Tensor]:
        """The parameters of both linear maps, as ``out.weight``."""
        return {name: value for name, value in self.named_parameters() if name.startswith(("hidden.", "out."))}

    def _mapped(self, name: str, x: Tensor) -> Tensor:
        if self.shared and not self.sites.state.weights:
            return linear(x, self.shared[f"{name}.weight"], self.shared.get(f"{name}.bias"))
        return getattr(self, name)(x)  # type: ignore[no-any-return]

    def before_up(self, up: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """The hook in front of B: what arrives there, times E.

        Args:
            up: The layer B.
            args: What it is called with.
        """
        return self(args[0]), *args[1:]

    def forward(self, z: Tensor) -> Tensor:
        """``z [S * R, T, r]``, or at the answer position ``[S * R, r]``, to ``E z`` of the same shape."""
        tokens = (z[:, None] if z.dim() == 2 else z).to(torch.promote_types(z.dtype, torch.float32))
        with torch.autocast(z.device.type, enabled=False):
            context = self._context(tokens)
            if self.recording:
                self.recorded = self._at_answer(context)
                self.every_token = self._draws_every_token(tokens)
            mixed = self._mix(tokens, *self.law(context))
        return mixed.reshape(z.shape).to(z.dtype)

    def _context(self, z: Tensor) -> Tensor:
        """``z [N, T, r]`` to the contexts ``[N, T, r]``, or ``[N, 1, r]`` where a row has one."""
        if self.context == "free":
            return z[:, :1].detach()  # what it holds does not matter
        mask = self.sites.state.mask
        if self.context == "token" or z.shape[1] == 1 or mask is None:
            return z
        mask = mask.repeat(len(z) // len(mask), 1)
        if self.context == "sequence":
            share = mask / mask.sum(-1, keepdim=True)
            return torch.einsum("nt,ntr->nr", share.to(z.dtype), z)[:, None]
        last = (mask.cumsum(-1) * mask).argmax(-1)
        return z[torch.arange(len(z), device=z.device), last][:, None]

    def _at_answer(self, context: Tensor) -> Tensor:
        """All contexts, or where only the ends of rows are met, those of the prompts' last tokens ``[N, 1, r]``."""
        state = self.sites.state
        if not state.tail or state.mask is None or context.shape[1] == 1:
            return context
        last = state.mask.argmax(-1).repeat(len(context) // len(state.mask))
        return context[torch.arange(len(context), device=context.device), last][:, None]

    def _draws_every_token(self, z: Tensor) -> bool:
        """Whether each of the tokens ``z [N, T, r]`` draws an E of its own, also where one law is that of all."""
        return self.context in ("token", "free") and z.shape[1] > 1 and not self.sites.state.tail

    def _mix(self, z: Tensor, mean: Tensor, rho: Tensor) -> Tensor:
        state = self.sites.state
        if state.keys is None or state.positions is None:
            return _times(mean, z)
        one_each = state.coherent or self.context in ("sequence", "last")
        tokens = self.sites.noisy_tokens(one_each or z.shape[1] != state.positions.shape[1])
        assert tokens is not None  # there are keys
        if one_each:
            noise = normal(tokens, self.number, self.rank**2, self.block)
            return _times(mean + torch.sigmoid(rho).square() * noise.to(z.dtype), z)
        noise = normal(tokens, self.number, self.rank, self.block)
        variance = _times(_variance(rho), z.square())
        floor = torch.finfo(variance.dtype).tiny  # the root's slope at zero is infinite
        return _times(mean, z) + (variance + floor).sqrt() * noise.to(z.dtype)

    @torch.no_grad()
    def mean_at_zero(self) -> Tensor:
        r""":math:`\mu(0)` ``[r, r]``, the mean of E in the empty context (of FE: the mean)."""
        mean, _ = self.law(self.out.weight.new_zeros(1, self.rank))
        return mean.view(self.rank, self.rank)


def divergence(mean: Tensor, rho: Tensor, prior_std: float) -> Tensor:
    r"""Kullback-Leibler divergence of :math:`N(\mu, \sigma^2)` from N(0, beta^2), entry by entry, in nats.

    .. math:: \log \beta - \log \sigma + \frac{\sigma^2 + \mu^2}{2 \beta^2} - \frac12,
        \qquad \sigma = \mathrm{sigmoid}(\rho)^2

    The logarithm is taken of :math:`\rho`, so that neither value nor gradient is lost where :math:`\sigma` underflows.

    Args:
        mean: Means :math:`\mu` of the entries.
        rho: The raw parameters :math:`\rho` of the standard deviations, of the same shape.
        prior_std: The prior's standard deviation :math:`\beta`.
    """
    square = (_variance(rho) + mean.square()) / (2 * prior_std**2)
    return square - 2 * logsigmoid(rho) + (math.log(prior_std) - 0.5)


class ContextualSites:
    """All contextual modules of one model.

    Args:
        model: The model, with LoRA of one rank at every site.
        context: Which context the laws depend on, one of ``CONTEXTS``.
        width: Hidden width C of every contextual module.

    Raises:
        UsageError: a context that is not allowed.
    """

    def __init__(self, model: AnswerModel, context: str = "token", width: int = 64) -> None:
        require_choice("context", context, CONTEXTS)
        self.modules: dict[str, ContextualModule] = {}
        self._stacks: list[ContextualStack] = []  # of the pass that was recorded last
        for path, layer in list(model.network.named_modules()):
            if ADAPTER in getattr(layer, "lora_A", {}):
                self._install(model, f"{plain_name(path)}.lora_E", layer, context, width)

    def _install(self, model: AnswerModel, name: str, layer: Any, context: str, width: int) -> None:
        down = layer.lora_A[ADAPTER].weight
        module = ContextualModule(name, len(self.modules), down.shape[0], context, width, model.context)
        layer.lora_E = nn.ModuleDict({ADAPTER: module.to(down.device, down.dtype)})
        layer.lora_B[ADAPTER].register_forward_pre_hook(module.before_up)
        model.sites.extend(child.name for child in module.children() if isinstance(child, SiteLinear))
        self.modules[name] = module

    def __len__(self) -> int:
        """Number of sites."""
        return len(self.modules)

    @torch.no_grad()
    def initialise(self, kind: str, std: float, *seed: int | str) -> None:
        r"""Draw the starting values, every parameter from a stream of its own.

        Args:
            kind: ``lora``: E is the identity with standard deviation ``std``, whatever the context, so that training
                starts at plain LoRA; ``release``: all weights and biases from torch's U(-1/sqrt(n), 1/sqrt(n)) for n
                inputs, which makes E small and :math:`\sigma` about 0.25.
            std: Standard deviation of every entry of E, with ``lora``.
            seed: Names the streams.
        """
        for name, module in self.modules.items():
            for part, parameter in module.named_parameters():
                inputs = module.width if part.startswith("out") else module.rank
                values = torch.empty(parameter.shape, device="cpu")  # the same draws on any device
                values.uniform_(-(inputs**-0.5), inputs**-0.5, generator=generator(*seed, "init", f"{name}.{part}"))
                parameter.copy_(values)
            if kind == "lora":
                root = std**0.5
                identity = torch.eye(module.rank, device=module.out.weight.device).flatten()
                rho = torch.full_like(identity, math.log(root / (1 - root)))
                module.out.weight.zero_()
                constant = module.out.weight[:, 0] if module.context == "free" else module.out.bias
                constant.copy_(torch.cat([identity, rho]))

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Within the block, the modules keep the contexts they meet, for :meth:`divergence`."""
        self._stacks = stacked(self.modules.values())
        try:
            yield
        finally:
            for module in self.modules.values():
                module.recording, module.shared = False, {}

    def divergence(self, mask: Tensor, prior_std: float, over: str = "mean", questions: int | None = None) -> Tensor:
        r"""KL of E's law from N(0, beta^2) at the contexts of the last recorded pass, summed over sites, in nats.

        The gradient of ``mean`` and ``draws`` reaches the contextual modules alone, as the paper has it.

        Args:
            mask: Which tokens are real ``[R, T]``.
            prior_std: beta.
            over: ``mean``: the mean over rows; where every token draws an E of its own, a row's divergence is the mean
                over its real tokens. ``draws``: one divergence for each E that is drawn, at real tokens, over the
                number of questions. ``release``: the sum over rows and tokens, padding included, and the gradient
                flows on into A, B and the layers below, as in the release.
            questions: How many there are; None for one a row.
        """
        release = over == "release"
        total = mask.new_zeros((), dtype=torch.float32)
        count = (questions or len(mask)) if over == "draws" else len(mask)
        share = mask / count if over == "draws" else mask / mask.sum(-1, keepdim=True) / count
        for stack in self._stacks:
            contexts = stack.contexts()
            with torch.autocast(contexts.device.type, enabled=False):  # as where the law was drawn from
                mean, rho = stack.laws(contexts if release else contexts.detach())
            values = divergence(mean, rho, prior_std).sum(1)
            if release:
                total = total + values.sum()
            elif stack.modules[0].every_token:
                total = total + (values * share).sum()  # of FE one value a row, for all of its tokens
            else:
                total = total + values.sum() / count
        self._stacks = []
        for module in self.modules.values():
            module.recorded = None
        return total


def _linear(inputs: int, outputs: int, bias: bool, name: str, sites: SiteContext) -> SiteLinear:
    made = nn.Linear(inputs, outputs, bias, device="meta").to_empty(device="cpu")  # values come with `initialise`
    return SiteLinear.adopt(made, name, 0, sites)


def _variance(rho: Tensor) -> Tensor:
    """sigma^2 from the logarithm of the sigmoid, whose way back is three operations; by two squares it is seven."""
    return (4 * logsigmoid(rho)).exp()


def _times(matrix: Tensor, z: Tensor) -> Tensor:
    """Matrices ``[N, T or 1, r * r]`` times vectors ``[N, T, r]``."""
    matrix = matrix.unflatten(-1, (z.shape[-1], -1))
    return torch.einsum("ntij,ntj->nti", matrix.expand(-1, z.shape[1], -1, -1), z)
