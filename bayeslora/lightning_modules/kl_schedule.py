"""How the weight of a KL term moves over the mini-batches of a cycle, as a closed form of the step.

Nothing is counted here: a run that is resumed finds its place in the cycle from the micro-step it is at.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import lightning as L

from bayeslora.errors import UsageError

KINDS = ("constant", "cyclic")
RELEASE = "release"  # cyclic over a cycle of the release's own length, see KLSchedule.of_release


def cyclic_share(step: int, cycle: int) -> float:
    r"""Share of the KL at a step of a cycle of M: late-heavy, each twice the one before (BLoB, section 3.4).

    .. math:: \pi_i = \frac{2^i}{2^{M + 1} - 1}, \quad i = 1 .. M, \qquad \sum_i \pi_i = 1 - \frac{1}{2^{M+1} - 1}

    Args:
        step: Micro-steps so far, from 0; the cycle begins anew after every M.
        cycle: M, 1 or more.
    """
    place = step % cycle + 1
    return math.exp2(place - cycle - 1) / (1 - math.exp2(-cycle - 1))  # 2.0**1024 would overflow


def constant_share(step: int, cycle: int) -> float:
    """Share of the KL where every step of a cycle of M has the same, 1/M.

    Args:
        step: The micro-step, counted from 0.
        cycle: Number M of micro-steps in a cycle.
    """
    return 1 / cycle


def release_cycle(questions: int, batch_size: int, processes: int = 1, gamma: float = 8.0) -> int:
    r"""Length of the release's cycle, :math:`\lfloor 100 N^{\pi / \gamma} / (P b) \rfloor` micro-steps.

    Args:
        questions: Number N of training questions.
        batch_size: Questions b in a micro-batch of one process.
        processes: Number P of processes.
        gamma: As released, 8.
    """
    return max(1, int(100 * questions ** (math.pi / gamma) / processes / batch_size))


@dataclass(frozen=True)
class KLSchedule:
    """The weight of the KL in the loss of every micro-batch, beside a mean negative log-likelihood.

    Gradient accumulation needs no care: the trainer averages the losses of micro-batches, KL and likelihood alike.

    Attributes:
        kind: ``constant``, or ``cyclic``: each micro-batch of a cycle weighs twice the one before.
        cycle: Length M of the cycle in micro-steps.
        total: What the weights of one cycle add up to (``cyclic``: but for one part in 2^(M+1) - 1).
    """

    kind: str
    cycle: int
    total: float

    def __post_init__(self) -> None:
        """Check what a user can get wrong."""
        if self.kind not in KINDS:
            raise UsageError(f"the KL schedule is {self.kind!r}; allowed: {', '.join((*KINDS, RELEASE))}")
        if self.cycle < 1 or not self.total >= 0:
            raise UsageError(
                f"the KL's cycle is {self.cycle}, its weight {self.total}; allowed: 1 or more steps, a weight from 0"
            )

    @classmethod
    def over_epoch(cls, kind: str, batches: int, questions: int, weight: float = 1.0) -> KLSchedule:
        r"""The evidence lower bound over an epoch's batches.

        With N questions in M batches, the losses :math:`\text{mean NLL} + w_i KL` of an epoch add up to M/N times
        :math:`\sum_n NLL_n + \text{weight} \cdot KL`: the bound itself at weight 1, a tempered one otherwise
        (``cyclic``: but for one part in :math:`2^{M+1} - 1` of the KL).

        Args:
            kind: ``constant`` or ``cyclic``.
            batches: Micro-batches M of an epoch, on one process.
            questions: Training questions N, of all processes.
            weight: Factor on the KL.
        """
        return cls(kind, batches, weight * batches / questions)

    @classmethod
    def of_release(cls, questions: int, batch_size: int, processes: int = 1, weight: float = 1.0) -> KLSchedule:
        """As BLoB was released: a cycle of :func:`release_cycle` micro-steps, whatever an epoch is; sum ``weight``.

        Args:
            questions: Number of training questions.
            batch_size: Questions in a batch of one process.
            processes: How many processes share the training.
            weight: What the shares of a cycle add up to.
        """
        return cls("cyclic", release_cycle(questions, batch_size, processes), weight)

    def weight(self, step: int) -> float:
        """Weight of the KL in the loss of a micro-batch.

        Args:
            step: Micro-steps before it, from the start of training.
        """
        share = cyclic_share if self.kind == "cyclic" else constant_share
        return self.total * share(step, self.cycle)


def release_schedule(trainer: L.Trainer, questions: int, weight: float) -> KLSchedule:
    """:meth:`KLSchedule.of_release` in a run, whose loader knows how many questions are in a batch of one process.

    Args:
        trainer: Of the run.
        questions: Number of training questions.
        weight: What the shares of a cycle add up to.
    """
    batch_size = trainer.train_dataloader.batch_sampler.batch_size  # type: ignore[union-attr]
    return KLSchedule.of_release(questions, batch_size, trainer.world_size, weight)
