"""One pass over questions that leaves the rows of their Jacobians in shards, and goes on where it was stopped."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from bayeslora.curvature.jacobian import Directions
from bayeslora.errors import RunError, UsageError
from bayeslora.models.answer_model import AnswerModel
from bayeslora.posteriors.laplace.function_space import ROWS
from bayeslora.posteriors.laplace.shards import Shards
from bayeslora.posteriors.laplace.softmax import softmax_root
from bayeslora.types import AnswerBatch


@dataclass(frozen=True)
class Network:
    """What a curvature needs of a module, of this package or any other.

    Attributes:
        parameters: The parameters that are differentiated by, weights and biases of linear maps.
        logits: Batch to logits ``[B, C]``, minus infinity at absent options.
        jacobian: Batch, names, dtype and directions to logits and Jacobian, as
            :func:`~bayeslora.curvature.jacobian.contrast_jacobian` gives them.
        label: Batch to labels ``[B]``.
        move: Batch to the same batch on the module's device.
        model: The module's AnswerModel, where it is of this package.
    """

    parameters: dict[str, nn.Parameter]
    logits: Callable[[Any], Tensor]
    jacobian: Callable[[Any, Sequence[str], torch.dtype, Directions | None], tuple[Tensor, dict[str, Tensor]]]
    label: Callable[[Any], Tensor]
    move: Callable[[Any], Any]
    model: AnswerModel | None = None


def collect(
    network: Network,
    batches: Iterable[Any],
    names: Sequence[str],
    shards: Shards,
    dtype: torch.dtype,
    directions: Directions | None = softmax_root,
    prune: float = 0.0,
) -> None:
    r"""Write the rows :math:`R_n^T J_n` of every question, with logits ``[B, C]`` and labels, batch by batch.

    A question whose :math:`\mathrm{tr}\,\Lambda_n` is below ``prune``, since the model is certain of it, costs a
    forward pass alone: it has no rows, and its trace is kept in ``lost``. Leaving such questions'
    :math:`E = \sum_n J_n^T \Lambda_n J_n` out of the Gauss-Newton matrix raises variances S to at most
    :math:`(1 + \|E\| / \lambda) S`.

    Args:
        network: The module.
        batches: The batches, always in the same order; those that are in the shards already are skipped.
        names: Parameters to differentiate by.
        shards: Where everything goes.
        dtype: Of the rows.
        directions: The roots R; None for the contrasts themselves.
        prune: Least trace of a question that is kept.

    Raises:
        UsageError: logits that differ from one evaluation to the next.
        RunError: a logit or an entry of a Jacobian that is not finite.
    """
    for index, batch in enumerate(batches):
        if index in shards:
            continue
        batch = network.move(batch)
        with torch.no_grad():
            logits = network.logits(batch).detach().double()
            if index == 0:
                _refuse_noise(logits, network.logits(batch))
        label = network.label(batch)
        trace = softmax_root(_finite(logits, index)).square().sum((-2, -1))
        keep = trace >= prune
        rows, kept = _rows(network, batch, keep, names, dtype, directions)
        size = sum(
            (value.double().square().sum().cpu() for value in rows.values()),
            torch.zeros((), dtype=torch.float64, device="cpu"),
        )
        shards.write(
            index,
            {
                "logits": logits,
                "label": label,
                "lost": trace.masked_fill(kept, 0.0),
                "kept": kept,
                "gain": size / trace[kept].sum().cpu().clamp(min=torch.finfo(torch.float64).tiny),
                **{f"{ROWS}{name}": value for name, value in rows.items()},
            },
        )


def _rows(
    network: Network,
    batch: Any,
    keep: Tensor,
    names: Sequence[str],
    dtype: torch.dtype,
    directions: Directions | None,
) -> tuple[dict[str, Tensor], Tensor]:
    """Rows of the present contrasts of the questions kept, name to ``[rows, numel]``, and which were kept."""
    if not names or not keep.any():
        return {
            name: torch.zeros(0, network.parameters[name].numel(), dtype=dtype, device="cpu") for name in names
        }, keep
    part = batch
    if isinstance(batch, AnswerBatch) and not keep.all():
        part = select_questions(batch, keep)
    else:
        keep = torch.ones_like(keep)
    logits, jacobian = network.jacobian(part, names, dtype, directions)
    present = logits[:, 1:].isfinite()
    rows = {name: value.flatten(2)[present] for name, value in jacobian.items()}
    for name, value in rows.items():
        if not value.isfinite().all():
            raise RunError(f"the Jacobian of {name} is not finite; look for an overflow in the model's dtype")
    return rows, keep


def select_questions(batch: AnswerBatch, keep: Tensor) -> AnswerBatch:
    """The questions of a batch for which ``keep [B]`` is true, with all of their rows."""
    rows = keep[batch.example_of_row]
    of_rows = ("input_ids", "attention_mask", "option_of_row", "token_type_ids")
    of_questions = ("answer_ids", "answer_mask", "label", "example_id", "option_order")
    parts = {name: getattr(batch, name) for name in (*of_rows, *of_questions)}
    chosen = {name: t[rows if name in of_rows else keep] for name, t in parts.items() if t is not None}
    return replace(batch, **chosen, example_of_row=(keep.cumsum(0) - 1)[batch.example_of_row[rows]])


def _refuse_noise(one: Tensor, other: Tensor) -> None:
    if not torch.allclose(one.nan_to_num(), other.double().nan_to_num(), atol=1e-3, rtol=1e-3):
        raise UsageError(
            "the logits of one batch differ between two evaluations, so that dropout or another noise is on; "
            "Laplace needs the module's logits_fn to be deterministic (module.eval())"
        )


def _finite(logits: Tensor, index: int) -> Tensor:
    if logits.isnan().any() or logits.isposinf().any() or logits.isinf().all(-1).any():
        raise RunError(f"logits of batch {index} are not finite; lower the learning rate, or use another dtype")
    return logits
