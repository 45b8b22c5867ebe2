"""What a fit after training depends on, in one place: one that was kept is used again only where all of it is equal."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Any

import lightning as L
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from bayeslora.lightning_modules.multiple_choice import MultipleChoiceModule
from bayeslora.types import AnswerBatch


def depends_on(
    trainer: L.Trainer, pl_module: L.LightningModule, batches: Iterable[Iterable[Any] | None]
) -> dict[str, Any]:
    """What the numbers of a fit depend on beside the weights and the method's own options, as plain values.

    The questions count as they are fed, tokens, labels and batches: a prompt, worked examples, a chat template, a
    length, a protocol or a draw of labels that differ make other questions.

    Args:
        trainer: The trainer, whose precision counts.
        pl_module: The module; one of this package says which base it is on, how that is quantised, and LoRA's scale.
        batches: The sets of batches that the fit looks at; they are iterated once.
    """
    found: dict[str, Any] = {
        "questions": [None if each is None else tensors_digest(each) for each in batches],
        "precision": str(trainer.precision),
        "seed": getattr(pl_module, "seed", None),
    }
    if isinstance(pl_module, MultipleChoiceModule):
        backbone = asdict(pl_module.backbone)
        found["base"] = pl_module.model.base_fingerprint
        found["backbone"] = {name: backbone[name] for name in ("quantization", "dtype", "readout", "num_labels")}
        found["adapter"] = _digest(pl_module.model.adapter_config)
    return found


def fit_key(weights: Mapping[str, Tensor], *values: Any) -> str:
    """A short name for a fit: of the weights it is around, and of plain values that it depends on.

    Args:
        weights: Name to weight.
        values: What else it depends on, for example :func:`depends_on` and the method's options.
    """
    digest = hashlib.sha256(_text(values))
    for name, weight in weights.items():
        digest.update(name.encode())
        digest.update(_bytes(weight))
    return digest.hexdigest()[:16]


def tensors_digest(batches: Iterable[Any]) -> str:
    """Sixteen hex digits that tell some tensors from others: by shape, values and everything beside them, in order.

    Half precisions count by their values, so that a tensor and its float32 copy have one digest.

    Args:
        batches: Batches, or any nested tuples, lists and dicts of tensors and plain values.
    """
    digest = hashlib.sha256()
    for batch in batches:
        plain = vars(batch) if isinstance(batch, AnswerBatch) else batch
        for leaf in pytree.tree_leaves(plain):
            digest.update(_bytes(leaf) if isinstance(leaf, Tensor) else repr(leaf).encode())
    return digest.hexdigest()[:16]


def _bytes(tensor: Tensor) -> bytes:
    """Shape and values; half precisions, which numpy lacks in part, as float32."""
    values = tensor.detach().cpu()
    values = values.float() if values.is_floating_point() and values.dtype != torch.float64 else values
    return repr(tuple(tensor.shape)).encode() + values.numpy().tobytes()


def _digest(value: Any) -> str:
    return hashlib.sha256(_text(value)).hexdigest()[:16]


def _text(value: Any) -> bytes:
    """Plain values as text that is the same in every process: the order of a set is that of one process alone."""

    def plain(other: object) -> object:
        """What JSON has no word for, as text; a set in order."""
        return sorted(map(str, other)) if isinstance(other, set | frozenset) else str(other)

    return json.dumps(value, sort_keys=True, default=plain).encode()
