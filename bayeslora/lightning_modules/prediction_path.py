"""The one path from a batch to what a method predicts for it.

A module predicts with its current weights. A posterior callback may claim the path and predict in its place, and
callbacks such as temperature scaling append transforms. Metrics and files read the end of the path and do not know
what is on it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary, ref

import lightning as L
from torch import Tensor

from bayeslora.errors import UsageError
from bayeslora.types import Predictive

Predict = Callable[[Any], Predictive]  #: From a batch of B questions to what is predicted for them.
Transform = Callable[[Predictive], Predictive]  #: What changes a prediction, as a temperature does.
#: From a module and its batch to logits ``[B, C]``, C of 2 or more.
LogitsFn = Callable[[L.LightningModule, Any], Tensor]


class PredictionPath:
    """How one module's batches become predictions.

    Args:
        default: Predicts a batch with the module's current weights.
    """

    def __init__(self, default: Predict) -> None:
        self._default = default
        self._claims: dict[str, Predict] = {}
        self._transforms: dict[str, Transform] = {}

    def claim(self, owner: str, predict: Predict) -> None:
        """Predict with ``predict`` instead of the current weights. Claiming again under one name replaces the claim.

        Args:
            owner: Name of the callback, as errors say it.
            predict: From a batch to its prediction.

        Raises:
            UsageError: another owner has claimed the path: two posteriors cannot both make one prediction.
        """
        others = [name for name in self._claims if name != owner]
        if others:
            raise UsageError(f"{owner} and {others[0]} both want to predict; allowed: one posterior callback a run")
        self._claims[owner] = predict

    def append(self, owner: str, transform: Transform) -> None:
        """Apply ``transform`` after what is on the path already; under a name already there it replaces that one.

        Args:
            owner: Name of the callback, as errors say it.
            transform: From a prediction to the one that replaces it.
        """
        self._transforms[owner] = transform

    def release(self, owner: str) -> None:
        """Take ``owner``'s claim and transform off the path."""
        self._claims.pop(owner, None)
        self._transforms.pop(owner, None)

    @property
    def owners(self) -> list[str]:
        """Who is on the path, the posterior that claimed it first, then the transforms in their order."""
        return [*self._claims, *self._transforms]

    def untransformed(self, batch: Any) -> Predictive:
        """The prediction before any transform."""
        predict = next(iter(self._claims.values()), self._default)
        return predict(batch)

    def __call__(self, batch: Any) -> Predictive:
        """The prediction for a batch."""
        predictive = self.untransformed(batch)
        for transform in self._transforms.values():
            predictive = transform(predictive)
        return predictive


_foreign: WeakKeyDictionary[L.LightningModule, PredictionPath] = WeakKeyDictionary()


def prediction_path(module: L.LightningModule, logits_fn: LogitsFn | None = None) -> PredictionPath:
    """The path of a module, ours or any other.

    Args:
        module: A LightningModule; ours have a path of their own.
        logits_fn: For other modules: ``(module, batch)`` to the logits ``[B, C]`` of the current weights.

    Raises:
        UsageError: a module of another kind, and no ``logits_fn`` given now or before.
    """
    own = getattr(module, "prediction", None)
    if isinstance(own, PredictionPath):
        return own
    if module not in _foreign:
        if logits_fn is None:
            raise UsageError(
                f"{type(module).__name__} has no answer_logits; give the callback logits_fn=(module, batch) -> [B, C]"
            )
        _foreign[module] = PredictionPath(_ForeignPredict(module, logits_fn))
    return _foreign[module]


def checked_logits(module: L.LightningModule, logits_fn: LogitsFn, batch: Any) -> Tensor:
    """What ``logits_fn`` gives, where it is logits ``[B, C]`` of C classes.

    Args:
        module: The module.
        logits_fn: ``(module, batch)`` to logits.
        batch: The batch.

    Raises:
        UsageError: anything else: a module with one output (a regression), say.
    """
    logits = logits_fn(module, batch)
    if not isinstance(logits, Tensor) or logits.dim() != 2 or logits.shape[1] < 2:
        given = f"shape {list(logits.shape)}" if isinstance(logits, Tensor) else type(logits).__name__
        raise UsageError(
            f"logits_fn gave {given} for {type(module).__name__}; allowed: logits [B, C] of C >= 2 classes (a score of "
            "one output is two logits: torch.stack([zeros, score], -1))"
        )
    return logits


def owners(module: L.LightningModule) -> list[str]:
    """Who is on a module's path; nobody where it has none yet."""
    path = getattr(module, "prediction", None) or _foreign.get(module)
    return path.owners if isinstance(path, PredictionPath) else []


class _ForeignPredict:
    """Predicts with a module that knows nothing of this package, holding it weakly."""

    def __init__(self, module: L.LightningModule, logits_fn: LogitsFn) -> None:
        self._module, self._logits_fn = ref(module), logits_fn

    def __call__(self, batch: Any) -> Predictive:
        module = self._module()
        if module is None:
            raise RuntimeError("the module whose prediction was asked for is gone")
        return Predictive.from_logits(checked_logits(module, self._logits_fn, batch)[None])
