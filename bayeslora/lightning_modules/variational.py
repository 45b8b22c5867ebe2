"""What methods share that minimise an evidence lower bound: the divergence of their Gaussian, and its weight."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

from torch import Tensor

from bayeslora.errors import require, require_choice
from bayeslora.lightning_modules.gaussian import GaussianModule
from bayeslora.lightning_modules.kl_schedule import KINDS, RELEASE, KLSchedule, release_schedule
from bayeslora.models.loading import Backbone, LoRA


class VariationalModule(GaussianModule):
    r"""Adds the divergence of its Gaussian from a prior to the negative log-likelihood under one draw.

    The loss of micro-batch i is :math:`L_i = \text{NLL}_i + w_i KL(q \| p)`. The weights w of an epoch's M batches add
    up to ``kl_weight`` M / N: with 1, an epoch's loss is the evidence lower bound. A subclass gives :meth:`kl`, and
    ``training_noise``: one draw of its weights.

    Args:
        backbone: The frozen base model.
        lora: The low-rank update.
        kl_schedule: ``constant``, ``cyclic`` (doubles from batch to batch) or ``release`` (cyclic, in a cycle of BLoB's
            release), see :class:`~bayeslora.lightning_modules.kl_schedule.KLSchedule`.
        kl_weight: Factor on the KL; below 1 the posterior is tempered.
        common: ``samples`` and ``predict`` as for :class:`GaussianModule`, the rest as for
            :class:`MultipleChoiceModule`.

    Raises:
        UsageError: a schedule that there is not, or a weight below 0.
    """

    def __init__(
        self,
        backbone: Backbone | None = None,
        lora: LoRA | None = None,
        *,
        kl_schedule: str = "cyclic",
        kl_weight: float = 1.0,
        **common: Any,
    ) -> None:
        super().__init__(backbone, lora, **common)
        require_choice("kl_schedule", kl_schedule, (*KINDS, RELEASE))
        require("kl_weight", kl_weight, kl_weight >= 0, "0 or more")
        self.kl_kind, self.kl_weight = kl_schedule, kl_weight

    @abstractmethod
    def kl(self) -> Tensor:
        """Divergence of the posterior from the prior, in nats, a scalar with gradients."""

    @property
    def kl_schedule(self) -> KLSchedule:
        """The weights of the KL in this run."""
        trainer: Any = self.trainer
        if self.kl_kind == RELEASE:
            return release_schedule(trainer, self.training_size, self.kl_weight)
        return KLSchedule.over_epoch(self.kl_kind, trainer.num_training_batches, self.training_size, self.kl_weight)

    def weighted_kl(self, step: int) -> Tensor:
        """The share of the KL that belongs to a micro-batch, by the number of micro-steps before it."""
        return self.kl_schedule.weight(step) * self.kl()

    def penalty(self) -> Tensor | None:
        """The micro-batch's share of the KL, unless a module steps by itself."""
        return self.weighted_kl(self._micro_step) if self.automatic_optimization else None

    def on_train_epoch_end(self) -> None:
        """Log the divergence, without its weight."""
        self.log("train/kl", self.kl().detach())
