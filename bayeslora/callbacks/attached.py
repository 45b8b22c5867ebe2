"""What a callback needs of a module of another package, tried before anything is trained."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_warn
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor

from bayeslora.errors import UsageError
from bayeslora.lightning_modules.multiple_choice import MultipleChoiceModule
from bayeslora.lightning_modules.prediction_path import LogitsFn, checked_logits
from bayeslora.models.in_place import evaluation_mode

LabelFn = Callable[[Any], Tensor]
_tried: WeakKeyDictionary[L.LightningModule, list[tuple[LogitsFn, LabelFn | None]]] = WeakKeyDictionary()


class Attached(L.Callback):
    """The base of callbacks that ask a module of another package for its logits.

    ``logits_fn`` and ``label_fn`` are tried on the first batch of the check before training, or of the first validation
    or training where there is no such check: what is wrong with them is an error before the first step, not after the
    last. Callbacks with the same functions try them once.
    """

    logits_fn: LogitsFn | None = None
    label_fn: LabelFn | None = None

    def on_validation_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Try the functions on a batch of the kind that is predicted.

        Raises:
            UsageError: logits that are not ``[B, C]`` with C of 2 or more, or labels that are none of C classes.
        """
        if self._untried(pl_module):
            self._try(trainer, pl_module, batch)

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Try the functions on the first training batch, where no validation came before it.

        Training batches may be of another kind than those that are predicted: where the functions cannot be called on
        them, a warning says so.

        Raises:
            UsageError: as :meth:`on_validation_batch_start`.
        """
        if not self._untried(pl_module):
            return
        try:
            self._try(trainer, pl_module, batch)
        except UsageError:
            raise
        except Exception as error:
            rank_zero_warn(
                f"{type(self).__name__}'s functions could not be tried on a training batch "
                f"({type(error).__name__}: {error}); mend them if test batches are of the same kind"
            )

    def _untried(self, pl_module: L.LightningModule) -> bool:
        own = isinstance(pl_module, MultipleChoiceModule)
        return not (own or self.logits_fn is None or (self.logits_fn, self.label_fn) in _tried.get(pl_module, []))

    def _try(self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any) -> None:
        assert self.logits_fn is not None
        _tried.setdefault(pl_module, []).append((self.logits_fn, self.label_fn))
        with evaluation_mode(pl_module), torch.no_grad(), isolate_rng(), trainer.precision_plugin.forward_context():
            logits = checked_logits(pl_module, self.logits_fn, batch)
        if self.label_fn is not None:
            _check_labels(self.label_fn(batch), logits)


def labels_of(batch: Any) -> Tensor:
    """The labels of a batch that knows them itself, as those of this package do.

    Args:
        batch: A batch with the attribute ``label``.

    Raises:
        UsageError: a batch without it.
    """
    if not hasattr(batch, "label"):
        raise UsageError(f"a batch ({type(batch).__name__}) has no label; give the callback label_fn=batch -> [B]")
    label: Tensor = batch.label
    return label


def _check_labels(labels: Any, logits: Tensor) -> None:
    """Refuse labels that are not one class number a question."""
    n, classes = logits.shape
    if not isinstance(labels, Tensor) or tuple(labels.shape) != (n,) or labels.is_floating_point():
        shape = tuple(labels.shape) if isinstance(labels, Tensor) else type(labels).__name__
        kind = f" of {labels.dtype}" if isinstance(labels, Tensor) else ""
        raise UsageError(f"label_fn gave {shape}{kind} for {n} questions; allowed: their class numbers, [{n}] integers")
    if n and not 0 <= int(labels.min()) <= int(labels.max()) < classes:
        raise UsageError(
            f"label_fn gave labels from {int(labels.min())} to {int(labels.max())}; allowed: class numbers from 0 to "
            f"{classes - 1}, as logits_fn gives {classes} logits"
        )
