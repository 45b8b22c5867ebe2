"""How a module's trainable parameters are optimised: AdamW's rate and decay, and the course of the rate over a run."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import partial
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from bayeslora.errors import UsageError, require
from bayeslora.models.loading import config_of


@dataclass
class Optimisation:
    """AdamW (Loshchilov & Hutter, 2019, arXiv:1711.05101) with a linear warm-up and a linear decay of its rate.

    Attributes:
        learning_rate: Peak learning rate.
        weight_decay: Decoupled weight decay: a step shrinks the weights by ``learning_rate * weight_decay``.
        warmup: Fraction of all optimiser steps over which the rate rises from zero to its peak.
        decay: Whether the rate then falls linearly to zero at the last step; otherwise it stays.

    Raises:
        UsageError: a value out of range.

    Example:
        >>> from bayeslora import LoRAModule, Optimisation
        >>> LoRAModule(optimisation=Optimisation(learning_rate=5e-4, warmup=0.1)).optimisation.weight_decay
        0.0
    """

    learning_rate: float = 1e-4
    weight_decay: float = 0.0
    warmup: float = 0.06
    decay: bool = True

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        require("learning_rate", self.learning_rate, self.learning_rate > 0, "above 0")
        require("weight_decay", self.weight_decay, self.weight_decay >= 0, "0 or more")
        require("warmup", self.warmup, 0 <= self.warmup <= 1, "a fraction of all steps, 0 to 1")

    @classmethod
    def of(cls, value: Optimisation | dict[str, Any] | None, flat: Mapping[str, Any]) -> Optimisation:
        """From itself, a plain dict or nothing; or from the names that modules took directly before there was this.

        Args:
            value: What was given as ``optimisation``.
            flat: Further arguments by name, which must be fields of this class.

        Raises:
            UsageError: a name that is no field, or both ways to say it at once.
        """
        if not flat:
            return config_of(cls, value)
        names = [field.name for field in fields(cls)]
        for name in flat:
            if name not in names:
                raise UsageError(f"a module has no argument {name!r}; of its optimisation: {', '.join(names)}")
        if value is not None:
            raise UsageError(f"{', '.join(flat)} given beside optimisation; give them within it")
        given = ", ".join(f"{name}={number!r}" for name, number in flat.items())
        warnings.warn(f"give optimisation=Optimisation({given})", DeprecationWarning, stacklevel=4)
        return cls(**flat)

    def schedule(self, optimizer: Optimizer, total: int) -> LambdaLR:
        """The course of the rate over a run of ``total`` optimiser steps, as torch's scheduler.

        Args:
            optimizer: The optimiser.
            total: Number of optimiser steps of the run.
        """
        return LambdaLR(optimizer, partial(warmup_decay, warmup=self.warmup, total=total, decay=self.decay))


def warmup_decay(step: int, warmup: float, total: int, decay: bool = True) -> float:
    """Factor on the peak learning rate: up for ``warmup * total`` steps, then down to zero, or level.

    Args:
        step: Optimiser steps so far.
        warmup: Fraction of all steps over which the factor rises from zero to one.
        total: All steps of the run.
        decay: Whether it then falls to zero.
    """
    rising = max(1, round(warmup * total)) if warmup > 0 else 0
    if step < rising:
        return step / rising
    return max(0.0, (total - step) / max(1, total - rising)) if decay else 1.0
