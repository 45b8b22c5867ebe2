r"""Per-example Jacobians of the answer's contrast logits, and prediction by the model linearised in its weights.

One forward pass keeps the inputs and outputs of every trainable linear map; one backward pass a contrast gives the
gradient at those outputs, and a product over tokens the Jacobian. Questions do not see each other, so the gradient of a
sum over the batch is every question's own. Only gradients of activations are needed, which quantised bases have too.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bayeslora.errors import UsageError
from bayeslora.models.answer_model import AnswerModel
from bayeslora.models.sites import SiteLinear
from bayeslora.types import AnswerBatch, GaussianPosterior, Predictive

Directions = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Call:
    """One use of a site in the forward pass: what went in, what came out, which output rows were asked for."""

    site: SiteLinear
    input: Tensor
    output: Tensor
    rows: Tensor | None

    @torch.no_grad()
    def add_to(self, jacobian: dict[str, Tensor], index: int, gradient: Tensor, example_of_row: Tensor) -> None:
        """Add a contrast's gradient at the output, times the input and summed over tokens, to the Jacobian.

        Args:
            jacobian: Parameter name to ``[B, D, *shape]``, which is added to in place.
            index: Which of the D contrasts the gradient is of.
            gradient: The contrast's gradient at the layer's output ``[R, T, o]``.
            example_of_row: Which question each row belongs to ``[R]``.
        """
        weight, bias = (jacobian.get(name) for name in _parameters_of(self.site))
        outer, inner = self.sides(gradient)
        with torch.autocast(gradient.device.type, enabled=False):
            if weight is not None:
                product = torch.einsum("bto,bti->boi", outer, inner)
                weight[:, index].index_add_(0, example_of_row, product.to(weight.dtype))
            if bias is not None:
                bias[:, index].index_add_(0, example_of_row, outer.sum(1).to(bias.dtype))

    def sides(self, gradient: Tensor) -> tuple[Tensor, Tensor]:
        """Gradient at every output ``[R, T, out]`` and input ``[R, T, in]``, token by token, at least in float32."""
        gradient = gradient.to(torch.promote_types(gradient.dtype, torch.float32))
        return _tokens(self._every(gradient)), _tokens(self.input.to(gradient.dtype))

    def _every(self, gradient: Tensor) -> Tensor:
        """The gradient at all outputs: those that were not computed have no influence."""
        if self.rows is None:
            return gradient
        return gradient.new_zeros(*gradient.shape[:-1], self.site.out_features).index_copy(-1, self.rows, gradient)


def contrast_jacobian(
    model: AnswerModel,
    batch: AnswerBatch,
    names: Collection[str] | None = None,
    dtype: torch.dtype = torch.float32,
    directions: Directions | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    r"""Answer logits and :math:`\partial (f_c - f_0) / \partial \theta` for c = 1 .. C-1, for every question.

    For a linear map :math:`z_t = W x_t + b`,
    :math:`\partial f / \partial W = \sum_t (\partial f / \partial z_t) x_t^T`. Works in eval and train mode (the hooks
    are gone before checkpointing recomputes anything), and inside ``torch.no_grad`` and ``torch.inference_mode``.

    Args:
        model: The model, at the weights to differentiate at; noise is off.
        batch: B questions.
        names: Parameters wanted, weights or biases of trainable linear maps; None for all trainable ones.
        dtype: Of the Jacobian; sums over tokens are taken in float32, or float64 where the model is.
        directions: Logits ``[B, C]`` to a matrix ``[B, C-1, C-1]`` whose columns combine the contrasts: the result is
            then :math:`R_n^T J_n`. None for the contrasts themselves.

    Returns:
        Logits ``[B, C]``, minus infinity at absent options, and name to ``[B, C-1, *shape]``, zero at absent options.

    Raises:
        UsageError: a parameter that is not a trainable linear map's, or one the network does not use as such.
    """
    wanted = _wanted(model, names)
    parameters, rows = model.trainable(), (len(batch), batch.answer_mask.shape[1] - 1)
    with torch.inference_mode(False):
        jacobian = {name: parameters[name].new_zeros(*rows, *parameters[name].shape, dtype=dtype) for name in wanted}

    def add(call: Call, index: int, gradient: Tensor) -> None:
        """Add a use's share to the Jacobian's rows of contrast ``index``."""
        call.add_to(jacobian, index, gradient, batch.example_of_row)

    return contrast_gradients(model, batch, wanted, add, directions), jacobian


def contrast_gradients(
    model: AnswerModel,
    batch: AnswerBatch,
    names: Collection[str] | None,
    visit: Callable[[Call, int, Tensor], None],
    directions: Directions | None = None,
) -> Tensor:
    """The gradient of every contrast at the output of every wanted linear map, one after another.

    Args:
        model: As in :func:`contrast_jacobian`.
        batch: As in :func:`contrast_jacobian`.
        names: As in :func:`contrast_jacobian`.
        visit: Is given a use of a linear map, the contrast's number and the gradient at that use's output.
        directions: As in :func:`contrast_jacobian`.

    Returns:
        Logits ``[B, C]``, minus infinity at absent options.

    Raises:
        UsageError: as :func:`contrast_jacobian`.
    """
    with torch.inference_mode(False), torch.enable_grad():
        batch = batch.map(torch.clone)  # a tensor made in inference mode cannot take part in a graph
        wanted = _wanted(model, names)
        with _recording(model, wanted) as calls:
            logits = model(batch).logits
        _check_calls(calls, wanted, len(batch.input_ids))
        contrasts = (logits[:, 1:] - logits[:, :1]).masked_fill(~batch.answer_mask[:, 1:], 0.0)
        if directions is not None:
            contrasts = torch.einsum("bc,bcd->bd", contrasts, directions(logits.detach()).to(contrasts.dtype))
        for index in range(contrasts.shape[1]):
            gradients = torch.autograd.grad(
                contrasts[:, index].sum(),
                [call.output for call in calls],
                retain_graph=index + 1 < contrasts.shape[1],
                allow_unused=True,
                materialize_grads=True,
            )
            for call, gradient in zip(calls, gradients, strict=True):
                visit(call, index, gradient)
    return logits.detach()


def linearised_predictive(
    model: AnswerModel, batch: AnswerBatch, posterior: GaussianPosterior, dtype: torch.dtype = torch.float32
) -> Predictive:
    r"""The prediction of the model linearised in its weights: Gaussian logits, without sampling.

    :math:`f \sim N(f(\mu), J \Sigma J^T)` over the contrasts, with J taken at the posterior mean :math:`\mu`.

    Args:
        model: The model; its current weights must be the posterior's mean, which is not checked.
        batch: B questions.
        posterior: A Gaussian over all or some of the trainable linear maps' parameters.
        dtype: Of the Jacobian.

    Raises:
        UsageError: a posterior over parameters that are not trainable linear maps'.
    """
    logits, jacobian = contrast_jacobian(model, batch, posterior.mean().keys(), dtype)
    return Predictive.from_gaussian(contrast_mean(logits, jacobian, posterior), posterior.logit_covariance(jacobian))


def contrast_mean(logits: Tensor, jacobian: Mapping[str, Tensor], posterior: GaussianPosterior) -> Tensor:
    """The mean of the linearised model's contrasts ``[B, C-1]``: those of the network, and ``J v`` of a refit.

    Args:
        logits: The network's ``[B, C]``, at the posterior's weights.
        jacobian: Of its contrasts, name to ``[B, C-1, *shape]``.
        posterior: A Gaussian; one that is centred elsewhere than at those weights has a ``logit_shift``.
    """
    contrasts = logits[:, 1:] - logits[:, :1]
    shift = getattr(posterior, "logit_shift", None)
    return contrasts if shift is None else contrasts + shift(jacobian)


def _tokens(tensor: Tensor) -> Tensor:
    """``[R, D]`` or ``[R, T, D]`` as ``[R, T, D]``."""
    return tensor.reshape(len(tensor), -1, tensor.shape[-1])


def _parameters_of(site: SiteLinear) -> tuple[str, str]:
    return f"{site.name}.weight", f"{site.name}.bias"


def _wanted(model: AnswerModel, names: Collection[str] | None) -> list[str]:
    """The parameters to differentiate by, in the order of the network."""
    trainable = model.trainable()
    linear = {name for site in _sites(model) for name in _parameters_of(site)} & trainable.keys()
    wanted = trainable.keys() if names is None else names
    refused = [name for name in wanted if name not in linear]
    if refused or not wanted:
        what = f"{refused[0]} ({len(refused)} such)" if refused else "no parameter at all"
        raise UsageError(
            f"a Jacobian was asked for by {what}; allowed: weights and biases of trainable linear layers. "
            "Freeze the others or leave them out of the names"
        )
    return [name for name in trainable if name in set(wanted)]


def _sites(model: AnswerModel) -> Iterator[SiteLinear]:
    return (module for module in model.network.modules() if isinstance(module, SiteLinear))


@contextmanager
def _recording(model: AnswerModel, wanted: Collection[str]) -> Iterator[list[Call]]:
    """Within the block, every use of the sites that hold the wanted parameters is noted in the list."""
    calls: list[Call] = []

    def note(site: Any, args: tuple[Tensor, ...], output: Tensor) -> None:
        """Keep what one use of a site took and gave."""
        calls.append(Call(site, args[0].detach(), output, args[1] if len(args) > 1 else None))

    sites = [site for site in _sites(model) if not set(wanted).isdisjoint(_parameters_of(site))]
    handles = [site.register_forward_hook(note) for site in sites]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def _check_calls(calls: list[Call], wanted: Collection[str], rows: int) -> None:
    used = {name for call in calls for name in _parameters_of(call.site)}
    missing = [name for name in wanted if name not in used]
    missing += [_parameters_of(call.site)[0] for call in calls if len(call.input) != rows]
    if missing:
        raise UsageError(
            f"the network does not apply {missing[0]} row by row as a linear layer, so its Jacobian is not known; "
            "allowed: layers that are called with one leading entry a row. Leave it out of the names"
        )
