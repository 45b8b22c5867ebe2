"""Per-example Jacobians of any module's contrast logits by its trainable linear layers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge
from transformers.pytorch_utils import Conv1D

from bayeslora.curvature.jacobian import Directions
from bayeslora.errors import UsageError

Uses = list[tuple[str, Tensor, GradientEdge | None]]  # a layer's path, its input, its output's place in the graph
Layers = dict[str, dict[str, str]]  # a layer's path to the names of what it holds, by weight and bias
_SHOWN = 4  # parameters that a refusal names
_PRODUCTS: dict[type[nn.Module], str] = {
    nn.Linear: "bto,bti->boi",
    Conv1D: "bto,bti->bio",
}  # of gradient and input; the weight of GPT-2's Conv1D is transposed


def linear_jacobian(
    module: nn.Module,
    logits_fn: Callable[[Any], Tensor],
    batch: Any,
    names: Sequence[str],
    dtype: torch.dtype = torch.float32,
    directions: Directions | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Logits and the Jacobian of the contrasts, as :func:`~bayeslora.curvature.jacobian.contrast_jacobian` gives them.

    Args:
        module: Any module; every linear layer whose weights are wanted keeps questions apart in its first dimension.
        logits_fn: Batch to logits ``[B, C]``.
        batch: Whatever ``logits_fn`` takes.
        names: Weights and biases of ``nn.Linear`` layers (or GPT-2's ``Conv1D``), as ``named_parameters`` has them.
        dtype: Of the Jacobian.
        directions: As there.

    Raises:
        UsageError: a parameter that is no linear layer's, a layer that is not applied question by question, or logits
            that have no gradient.
    """
    with torch.inference_mode(False), torch.enable_grad():
        batch = apply_to_collection(batch, Tensor, torch.clone)  # one made in inference mode cannot be in a graph
        check_linear(module, names)
        layers = _layers(module, names)
        # a compiled network is run as it was written: what is compiled does not call the hooks that watch its layers
        with _recording(module, layers) as uses, torch.compiler.set_stance("force_eager"):
            logits = logits_fn(batch)
        _check_uses(uses, layers, names, logits)
        contrasts = (logits[:, 1:] - logits[:, :1]).nan_to_num(neginf=0.0, posinf=0.0)
        if directions is not None:
            contrasts = torch.einsum("bc,bcd->bd", contrasts, directions(logits.detach()).to(contrasts.dtype))
        shapes = dict(module.named_parameters())
        jacobian = {
            n: torch.zeros(*contrasts.shape, *shapes[n].shape, dtype=dtype, device=logits.device) for n in names
        }
        outputs = [output for _, _, output in uses if output is not None]  # all of them, which was checked
        for index in range(contrasts.shape[1]):
            gradients = torch.autograd.grad(contrasts[:, index].sum(), outputs, retain_graph=True, allow_unused=True)
            for (path, inner, _), gradient in zip(uses, gradients, strict=True):
                if gradient is None:  # the contrast does not depend on this use
                    continue
                product = _product(module.get_submodule(path))
                assert product is not None  # the names were checked
                _add(jacobian, index, layers[path], (inner, gradient), product)
    return logits.detach(), jacobian


@torch.no_grad()
def _add(
    jacobian: dict[str, Tensor], index: int, own: dict[str, str], pair: tuple[Tensor, Tensor], product: str
) -> None:
    inner, gradient = pair
    wide = torch.promote_types(gradient.dtype, torch.float32)
    outer, inner = (t.to(wide).reshape(len(t), -1, t.shape[-1]) for t in (gradient, inner))
    for kind, value in (("weight", lambda: torch.einsum(product, outer, inner)), ("bias", lambda: outer.sum(1))):
        if kind in own:
            rows = jacobian[own[kind]]
            rows[:, index] += value().to(rows.dtype)


def check_linear(module: nn.Module, names: Sequence[str]) -> None:
    """Refuse parameters by which no Jacobian is known, before it is asked for.

    Args:
        module: Any module.
        names: Its parameters, as ``named_parameters`` has them.

    Raises:
        UsageError: naming those that are no linear layer's, and how to freeze them.
    """
    layers = [(module.get_submodule(path), own) for path, own in _layers(module, names).items()]
    others = {name: type(layer).__name__ for layer, own in layers for name in own.values() if _product(layer) is None}
    if others:
        shown = ", ".join(f"{name} ({kind})" for name, kind in list(others.items())[:_SHOWN])
        more = f" and {len(others) - _SHOWN} more" if len(others) > _SHOWN else ""
        raise UsageError(
            f"a Jacobian is known by the weights and biases of nn.Linear and Conv1D, not by {shown}{more}; freeze them "
            f"before training: module.get_parameter({next(iter(others))!r}).requires_grad_(False)"
        )


def _product(layer: nn.Module) -> str | None:
    return next((product for kind, product in _PRODUCTS.items() if isinstance(layer, kind)), None)


def _layers(module: nn.Module, names: Sequence[str]) -> Layers:
    """The layers that hold the parameters; one that several layers share is at each of them."""
    wanted = {id(parameter): name for name, parameter in module.named_parameters() if name in set(names)}
    held = {
        path: {kind: wanted[id(p)] for kind, p in layer.named_parameters(recurse=False) if id(p) in wanted}
        for path, layer in module.named_modules()
    }
    return {path: own for path, own in held.items() if own}


@contextmanager
def _recording(module: nn.Module, layers: Layers) -> Iterator[Uses]:
    uses: Uses = []
    handles = []
    for path in layers:

        def note(layer: nn.Module, args: tuple[Tensor, ...], output: Tensor, path: str = path) -> None:
            """Keep what one use of a layer took, and gave: no tensor, which ``ReLU(inplace=True)`` would change."""
            uses.append((path, args[0].detach(), get_gradient_edge(output) if output.requires_grad else None))

        handles.append(module.get_submodule(path).register_forward_hook(note))
    try:
        yield uses
    finally:
        for handle in handles:
            handle.remove()


def _check_uses(uses: Uses, layers: Layers, names: Sequence[str], logits: Tensor) -> None:
    used = {name for path, _, _ in uses for name in layers[path].values()}
    wrong = [name for name in names if name not in used]
    wrong += [path for path, inner, _ in uses if len(inner) != len(logits)]
    if wrong:
        raise UsageError(
            f"the network does not apply {wrong[0]} question by question as a linear layer, so its Jacobian is not "
            "known; freeze it"
        )
    cut = [path for path, _, output in uses if output is None]
    if cut or not logits.requires_grad:
        raise UsageError(
            f"logits_fn gives logits that have no gradient by {cut[0] if cut else names[0]}, so that their Jacobian is "
            "not known; leave torch.no_grad, torch.inference_mode and detach out of it, or freeze what is meant to "
            "stay as it is"
        )
