"""One pass over questions that leaves the rows of their Jacobians in shards, and goes on where it was stopped."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from bayeslora.curvature.jacobian import Directions
from bayeslora.curvature.ranks import Ranks
from bayeslora.errors import RunError, UsageError
from bayeslora.models.answer_model import AnswerModel
from bayeslora.posteriors.laplace.grams import ROWS
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
    prune: float = 0.0,
    ranks: Ranks | None = None,
) -> None:
    r"""Write the contrasts' Jacobian of every question, with logits ``[B, C]`` and labels, batch by batch.

    Its rows ``[rows, P]`` hold all parameters side by side, in the order of ``names``; they are not weighted by the
    curvature of the softmax, so that other logits can weight them anew.

    A question of which the model is certain adds next to nothing to the Gauss-Newton matrix. Where the trace of its
    softmax's covariance :math:`\Lambda_n` is below ``prune`` times the mean trace of the questions so far, it costs a
    forward pass alone and has no rows; its trace is kept in ``lost``. In all at most a share of
    ``prune`` :math:`(1 + \log N)` of the traces is lost so. Leaving such questions'
    :math:`E = \sum_n J_n^T \Lambda_n J_n` out raises variances S to at most :math:`(1 + \|E\| / \lambda) S`.

    Where several processes fit together, each takes its batches and judges questions by those it has seen itself.

    Args:
        network: The module.
        batches: The batches, always in the same order; those that are in the shards already are skipped.
        names: Parameters to differentiate by.
        shards: Where everything goes.
        dtype: Of the rows.
        prune: Share of the mean trace below which a question is left out; 0 keeps every question.
        ranks: The processes that fit together; None for this one alone.

    Raises:
        UsageError: logits that differ from one evaluation to the next.
        RunError: a logit or an entry of a Jacobian that is not finite.
    """
    ranks = ranks or Ranks()
    with ranks.together():
        _collect_own(network, ranks.own(batches), names, shards, dtype, prune)
    shards.exchange(ranks.gather)


def _collect_own(
    network: Network,
    batches: Iterable[tuple[int, Any]],
    names: Sequence[str],
    shards: Shards,
    dtype: torch.dtype,
    prune: float,
) -> None:
    """:func:`collect` of the batches of one process, with their numbers."""
    traces = torch.zeros(0, dtype=torch.float64, device="cpu")
    for index, batch in batches:
        if index in shards:
            traces = torch.cat([traces, shards.read(index, "trace")])
            continue
        batch = network.move(batch)
        with torch.no_grad():
            logits = network.logits(batch).detach().double().cpu()
            if not len(traces):
                _refuse_noise(logits, network.logits(batch).cpu())
        trace = softmax_root(_finite(logits, index)).square().sum((-2, -1))
        traces = torch.cat([traces, trace])
        rows, kept = _rows(network, batch, logits, trace >= prune * traces.mean(), names, dtype)
        found = {"logits": logits, "label": network.label(batch), "trace": trace, "kept": kept, ROWS: rows}
        lost, gain = trace.masked_fill(kept, 0.0), _largest_square(rows, logits[kept])
        shards.write(index, {**found, "lost": lost, "gain": gain})


def _rows(
    network: Network,
    batch: Any,
    logits: Tensor,
    keep: Tensor,
    names: Sequence[str],
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    """Rows ``[rows, P]`` of the present contrasts of the questions kept, on the CPU, and which were kept."""
    if not names or not keep.any():
        size = sum(network.parameters[name].numel() for name in names)
        return torch.zeros(0, size, dtype=dtype, device="cpu"), keep
    part = batch
    if isinstance(batch, AnswerBatch) and not keep.all():
        part = select_questions(batch, keep)
    else:
        keep = torch.ones_like(keep)
    jacobian = network.jacobian(part, names, dtype, None)[1]
    flat = torch.cat([jacobian.pop(name).flatten(2) for name in names], -1)
    rows = flat.cpu()[logits[keep][:, 1:].isfinite()[:, : flat.shape[1]]]
    if not torch.linalg.vector_norm(rows, dtype=torch.float64).isfinite():
        sizes = [network.parameters[name].numel() for name in names]
        parts = zip(names, rows.split(sizes, 1), strict=True)
        name = next(name for name, part in parts if not part.isfinite().all())
        raise RunError(f"the Jacobian of {name} is not finite; look for an overflow in the model's dtype")
    return rows, keep


def _largest_square(rows: Tensor, logits: Tensor) -> Tensor:
    """The largest squared norm of a question's Jacobian, which bounds its curvature by its trace."""
    if not len(rows):
        return torch.zeros((), dtype=torch.float64, device="cpu")
    squares = torch.zeros(logits[:, 1:].shape, dtype=torch.float64, device="cpu")
    squares[logits[:, 1:].isfinite()] = torch.linalg.vector_norm(rows, dim=1, dtype=torch.float64).square()
    return squares.sum(-1).max()


def select_questions(batch: AnswerBatch, keep: Tensor) -> AnswerBatch:
    """The questions of a batch for which ``keep [B]`` is true, with all of their rows.

    Args:
        batch: The questions.
        keep: Which questions stay, bool ``[B]``.
    """
    here = keep.to(batch.example_of_row.device)
    rows, questions = here[batch.example_of_row].nonzero()[:, 0], keep.nonzero()[:, 0].to(here.device)
    of_rows = ("input_ids", "attention_mask", "option_of_row", "token_type_ids")
    of_questions = ("answer_ids", "answer_mask", "label", "example_id", "option_order")
    parts = {name: getattr(batch, name) for name in (*of_rows, *of_questions)}
    chosen = {name: t[rows if name in of_rows else questions] for name, t in parts.items() if t is not None}
    whole = None if batch.whole_labels is None else batch.whole_labels.select(rows)
    return replace(batch, **chosen, whole_labels=whole, example_of_row=(here.cumsum(0) - 1)[batch.example_of_row[rows]])


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
