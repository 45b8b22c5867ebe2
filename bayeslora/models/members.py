"""Members of an ensemble in one model: stacked parameters, and batches of their own in one pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from torch.nn.utils import get_total_norm

from bayeslora.errors import UsageError
from bayeslora.models.noise import noise_positions, row_keys
from bayeslora.models.sites import SiteLinear, SiteState, plain_name
from bayeslora.types import AnswerBatch, Samples, WholeLabels

if TYPE_CHECKING:
    from bayeslora.models.answer_model import AnswerModel


def stack_members(network: nn.Module, count: int) -> None:
    """Replace every trainable parameter ``[*shape]`` by ``count`` copies of it, ``[count, *shape]``, of the same name.

    Args:
        network: The network, which is changed in place.
        count: Number M of members.

    Raises:
        UsageError: a trainable parameter that is not a linear map's.
    """
    stacked = set()
    for module in network.modules():
        if isinstance(module, SiteLinear):
            for kind, own in list(module.named_parameters(recurse=False)):
                setattr(module, kind, nn.Parameter(own.detach().expand(count, *own.shape).clone()))
                stacked.add(id(getattr(module, kind)))
    for name, parameter in network.named_parameters():
        if parameter.requires_grad and id(parameter) not in stacked:
            raise UsageError(f"{plain_name(name)} is trained and no linear map's; allowed in an ensemble: LoRA, heads")


@contextmanager
def as_member(network: nn.Module, place: int) -> Iterator[None]:
    """Within the block the network has one member's weights as its parameters, ``[*shape]``; then the stack again.

    Args:
        network: The network, which is changed in place.
        place: The member's place in the stack.
    """
    stacked = []
    for module in network.modules():
        if isinstance(module, SiteLinear):
            for kind, own in list(module.named_parameters(recurse=False)):
                stacked.append((module, kind, own))
                with torch.inference_mode(False):  # one made in inference mode could not be differentiated by
                    setattr(module, kind, nn.Parameter(own.detach()[place].clone()))
    try:
        yield
    finally:
        for module, kind, own in stacked:
            setattr(module, kind, own)


def join_batches(batches: Sequence[AnswerBatch], left: bool, pad_id: int) -> AnswerBatch:
    """S batches of B questions as one of S * B, the rows and questions of the first batch first.

    Args:
        batches: Of equally many questions and equally many rows.
        left: Whether rows are padded on the left.
        pad_id: Token to pad with.

    Raises:
        ValueError: the batches differ in their numbers of questions or rows.
    """
    sizes = {(len(batch), len(batch.input_ids)) for batch in batches}
    if len(sizes) != 1:
        raise ValueError(f"batches of one pass must have equally many questions and rows; given {sorted(sizes)}")

    def wide(tensors: Sequence[Tensor], left: bool = False, value: int = 0) -> Tensor:
        """Tensors ``[n, width]`` padded to the widest, one below the other."""
        width = max(tensor.shape[1] for tensor in tensors)
        gaps = [width - tensor.shape[1] for tensor in tensors]
        padded = [
            pad(t, (gap, 0) if left else (0, gap), value=value) if gap else t
            for t, gap in zip(tensors, gaps, strict=True)
        ]
        return torch.cat(padded)

    types = [batch.token_type_ids for batch in batches if batch.token_type_ids is not None]
    return AnswerBatch(
        input_ids=wide([batch.input_ids for batch in batches], left, pad_id),
        attention_mask=wide([batch.attention_mask for batch in batches], left),
        example_of_row=torch.cat([batch.example_of_row + index * len(batch) for index, batch in enumerate(batches)]),
        option_of_row=torch.cat([batch.option_of_row for batch in batches]),
        answer_ids=wide([batch.answer_ids for batch in batches]),
        answer_mask=wide([batch.answer_mask for batch in batches]),
        label=torch.cat([batch.label for batch in batches]),
        example_id=torch.cat([batch.example_id for batch in batches]),
        dataset=batches[0].dataset,
        token_type_ids=wide(types, left) if types else None,
        whole_labels=_joined_labels([batch.whole_labels for batch in batches if batch.whole_labels is not None]),
    )


def _joined_labels(parts: Sequence[WholeLabels]) -> WholeLabels | None:
    """The labels of several batches one after another, if they have any; rows are padded on the left."""
    if not parts:
        return None
    width, sizes = max(part.segments.shape[1] for part in parts), [part.ids.shape[1:] for part in parts]
    options, length = (max(column) for column in zip(*sizes, strict=True))

    def padded(name: str) -> Tensor:
        """One field of all parts, padded to the longest, one below the other."""
        tensors = [getattr(part, name) for part in parts]
        if name in ("segments", "offsets"):
            return torch.cat([pad(t, (width - t.shape[1], 0)) for t in tensors])
        fill = 1 if name == "places" else 0
        gaps = [(0, length - t.shape[2], 0, options - t.shape[1]) for t in tensors]
        return torch.cat([pad(t, gap, value=fill) for t, gap in zip(tensors, gaps, strict=True)])

    return WholeLabels(
        segments=padded("segments"),
        offsets=padded("offsets"),
        ids=padded("ids"),
        places=padded("places"),
        weights=padded("weights"),
        reach=max(part.reach for part in parts),
        normalised=any(part.normalised for part in parts),
    )


def joined_state(batch: AnswerBatch, samples: Samples) -> SiteState:
    """The state of the sites for a pass in which sample s meets batch s.

    Args:
        batch: The S batches, joined.
        samples: The S samples; a row's noise is what it would be were its sample and batch alone.
    """
    keys = positions = None
    if samples.draws is not None:
        every, own = row_keys(batch, samples), torch.arange(len(samples), device=batch.input_ids.device)
        keys = every.view(len(samples), len(samples), -1)[own, own].flatten()  # sample s of batch s, of all pairs
        positions = noise_positions(batch)
    return SiteState(
        groups=len(samples),
        weights=samples.weights,
        keys=keys,
        positions=positions,
        perturbations=samples.perturbations,
        mask=batch.prompt_mask,
    )


def gradient_norms(gradients: Sequence[Tensor]) -> Tensor:
    """Norm of every member's gradient, ``[M]``, from stacked gradients ``[M, *shape]``."""
    return torch.stack(
        [get_total_norm(own) for own in zip(*(gradient.unbind() for gradient in gradients), strict=True)]
    )


def batch_of_each(batch: AnswerBatch | list[AnswerBatch], count: int, shared: bool) -> list[AnswerBatch]:
    """A batch for every member: its own, or the one that all share.

    Args:
        batch: What the data give.
        count: Number M of members.
        shared: Whether one batch is for all.

    Raises:
        UsageError: batches for another number of members.
    """
    if isinstance(batch, AnswerBatch):
        batch = [batch] * (count if shared else 1)
    if len(batch) != count:
        raise UsageError(
            f"{count} members need a batch each, the data gives {len(batch)}; allowed: DataModules of this package, or "
            "share_data_order"
        )
    return batch


def divergence_from_base(
    model: AnswerModel, logits: Tensor, batches: Sequence[AnswerBatch], weights: Mapping[str, Tensor]
) -> Tensor:
    r"""Mean :math:`KL(p_\theta \| p_{base})` over the options of each member's questions, ``[S]``.

    Args:
        model: The model with its members.
        logits: Their answers' logits ``[S, B, C]``.
        batches: A batch for each of them.
        weights: Their parameters, name to ``[S, *shape]``.
    """
    bare = {name: torch.zeros_like(w) if ".lora_B." in name else w.detach() for name, w in weights.items()}
    with torch.no_grad():
        base = model.forward_each(batches, Samples(bare)).logits.log_softmax(-1)
    own = logits.log_softmax(-1)
    gap = torch.where(own.isinf(), 0.0, own) - torch.where(base.isinf(), 0.0, base)
    return (own.exp() * gap).sum(-1).mean(-1)


def product_norms(parameters: Mapping[str, Tensor]) -> Tensor:
    r"""Squared size of every member's update, :math:`\sum_l \|B_l A_l\|_F^2`, ``[M]``.

    By Gram matrices of r x r numbers, :math:`\|BA\|_F^2 = tr((B^T B)(A A^T))`, so that no product is ever formed.

    Args:
        parameters: Stacked A ``[M, r, in]`` and B ``[M, out, r]`` by peft's names; others are left out.
    """
    norms = []
    for name, down in parameters.items():
        if ".lora_A." in name:
            up = parameters[name.replace(".lora_A.", ".lora_B.")]
            with torch.autocast(down.device.type, enabled=False):
                norms.append(((up.mT @ up) * (down @ down.mT)).sum((-2, -1)))
    return torch.stack(norms).sum(0)


def backpropagate(losses: Sequence[Callable[[], Tensor]], parameters: Sequence[Tensor]) -> Tensor:
    """The sum of some losses, whose gradients are computed one loss after another, so that one graph is held at a time.

    Args:
        losses: Functions that compute a loss.
        parameters: All that the losses are to be differentiated by.

    Returns:
        A scalar; its backward pass hands out the gradients that are there already.
    """
    total, sums = torch.zeros((), device=parameters[0].device), [torch.zeros_like(p) for p in parameters]
    for one in losses:
        loss = one()
        for own, gradient in zip(sums, torch.autograd.grad(loss, parameters, allow_unused=True), strict=True):
            if gradient is not None:
                own.add_(gradient)
        total = total + loss.detach()
    return _Backpropagated.apply(total, sums, *parameters)  # type: ignore[no-any-return,no-untyped-call]


class _Backpropagated(torch.autograd.Function):
    """A loss whose gradients are known."""

    @staticmethod
    def forward(ctx: Any, loss: Tensor, gradients: list[Tensor], *parameters: Tensor) -> Tensor:
        """The loss as it is; keeps its gradients."""
        ctx.save_for_backward(*gradients)
        return loss.clone()

    @staticmethod
    def backward(ctx: Any, scale: Tensor) -> Any:
        """The gradients that are known, times what arrives from above."""
        return None, None, *(scale * gradient for gradient in ctx.saved_tensors)


def rows_of(optimizer: torch.optim.Optimizer, places: list[int]) -> list[tuple[Tensor, list[int], Tensor]]:
    """Copies of the parameters and the optimiser's state of the members at some places.

    Args:
        optimizer: The optimiser of the stack.
        places: The members' places in the stack.
    """
    if not places:
        return []
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    kept = [(p, [v for v in optimizer.state[p].values() if isinstance(v, Tensor)]) for p in parameters]
    tensors = [t for p, state in kept for t in (p.detach(), *state) if t.shape == p.shape]
    return [(tensor, places, tensor[places].clone()) for tensor in tensors]
