"""What Laplace needs of a LightningModule: its logits and Jacobians, one network at a time, with noise off."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities import move_data_to_device
from torch import Tensor, nn

from bayeslora.callbacks.attached import LabelFn, labels_of
from bayeslora.callbacks.posterior import trainable_of, weight_sets
from bayeslora.curvature.fit import check_structure_of
from bayeslora.curvature.jacobian import contrast_jacobian
from bayeslora.curvature.linear_jacobian import check_linear, linear_jacobian
from bayeslora.curvature.rows import Network
from bayeslora.errors import UsageError
from bayeslora.lightning_modules.ensemble import LoRAEnsemble
from bayeslora.lightning_modules.multiple_choice import MultipleChoiceModule
from bayeslora.lightning_modules.prediction_path import LogitsFn, checked_logits
from bayeslora.models.loading import initialise
from bayeslora.models.members import as_member
from bayeslora.types import AnswerBatch


def network_of(pl_module: L.LightningModule, logits_fn: LogitsFn | None, label_fn: LabelFn | None) -> Network:
    """What a curvature needs of a module.

    Args:
        pl_module: The module that the trainer runs.
        logits_fn: Gives the logits ``[B, C]`` of a module of another kind from the module and a batch; None for this
            package's.
        label_fn: Gives the labels ``[B]`` of a batch where batches are of another kind; None for this package's.

    Raises:
        UsageError: nothing is trainable, or a module of another kind without ``logits_fn``.
    """
    trainable = trainable_of(pl_module)
    # a stack is the network of one member here, so that its parameters are no rows of members' to take one from
    names = trainable if is_stack(pl_module) else weight_sets(pl_module)[0]
    parameters: dict[str, nn.Parameter] = {name: trainable[name] for name in names}
    if not parameters:
        raise UsageError(f"{type(pl_module).__name__} has no trainable parameters, so there is no curvature to fit")
    move = partial(_moved, device=pl_module.device)
    if isinstance(pl_module, MultipleChoiceModule):
        model = pl_module.model
        jacobian = partial(contrast_jacobian, model)
        return Network(parameters, lambda batch: model(batch).logits, jacobian, lambda b: b.label, move, model)
    if logits_fn is None:
        raise UsageError(f"{type(pl_module).__name__} has no answer_logits; give Laplace logits_fn and label_fn")

    def logits(batch: Any) -> Tensor:
        """Logits ``[B, C]`` of the user's module."""
        return checked_logits(pl_module, logits_fn, batch)

    def foreign(batch: Any, names: Any, dtype: Any, directions: Any) -> Any:
        """Its logits and Jacobian, through whatever linear layers it has."""
        return linear_jacobian(pl_module, logits, batch, names, dtype, directions)

    return Network(parameters, logits, foreign, label_fn or labels_of, move)


def check_module(
    pl_module: L.LightningModule, structure: str, logits_fn: LogitsFn | None, label_fn: LabelFn | None
) -> None:
    """Refuse a module whose curvature will not be known; it may be asked before anything is trained.

    Args:
        pl_module: The module that the trainer runs.
        structure: Laplace's.
        logits_fn: As for :func:`network_of`.
        label_fn: Likewise.

    Raises:
        UsageError: nothing is trainable, no ``logits_fn``, or a structure or layers that are for modules of this
            package alone.
    """
    network = network_of(pl_module, logits_fn, label_fn)
    if network.model is None:
        check_structure_of(network, structure)
        check_linear(pl_module, list(network.parameters))


def _moved(batch: Any, device: torch.device) -> Any:
    """A batch on a device; one of this package without waiting for its tensors one by one."""
    if isinstance(batch, AnswerBatch):
        return batch.to(device, non_blocking=True)
    return move_data_to_device(batch, device)


def is_stack(pl_module: L.LightningModule) -> bool:
    """Whether members are stacked in the module."""
    return isinstance(pl_module, LoRAEnsemble)


def member_network(pl_module: L.LightningModule, place: int | None) -> AbstractContextManager[None]:
    """Within the block a stack is the network of the member at a place; other modules are what they are.

    Args:
        pl_module: The module that the trainer runs.
        place: The member's place in a stack; None for a module of one network.
    """
    if place is None or not isinstance(pl_module, LoRAEnsemble):
        return nullcontext()
    return as_member(pl_module.model.network, place)


def initial_weights(pl_module: L.LightningModule, network: Network, place: int | None) -> dict[str, Tensor] | None:
    """The weights training began with: LoRA's drawn again from the seed, where they were drawn at all.

    Args:
        pl_module: The module that the trainer runs.
        network: What a curvature needs of the module, from :func:`network_of`.
        place: The member's place in a stack; None for a module of one network.
    """
    if not isinstance(pl_module, MultipleChoiceModule) or pl_module.backbone.adapter:
        return None
    # in the dtype they were drawn in: the same numbers, whatever the module was converted to since
    initial = {n: torch.zeros(p.shape, dtype=torch.float32, device="cpu") for n, p in network.parameters.items()}
    if place is None:
        initialise(initial, pl_module.seed)
    else:
        assert isinstance(pl_module, LoRAEnsemble)
        member = 0 if pl_module.share_init else pl_module.member_ids[place]
        initialise(initial, pl_module.seed, "member", member)
    noted = pl_module.model.initial
    return {name: noted.get(name, value) for name, value in initial.items()}
