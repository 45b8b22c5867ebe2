"""What a micro-batch counts for in its optimiser step, where micro-batches and ranks do not share the step evenly."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class StepShare:
    r"""Factors on a micro-batch's loss, by which a step follows the mean over all of its questions.

    The trainer divides the loss of every micro-batch by the number k of micro-batches that a step adds up, also where
    the last step of an epoch has only m of them, and DDP averages over the W ranks. A step of N questions, n of them in
    this micro-batch on this rank, therefore takes the mean over the n with a factor of W k n / N, and what does not
    depend on questions, such as the divergence from a prior, with k / m. Both are 1 where all is even.

    Attributes:
        questions: Factor on a mean over the micro-batch's questions.
        batches: Factor on what does not depend on questions.

    Example:
        >>> import torch
        >>> StepShare(questions=0.5).of(torch.tensor(4.0), torch.tensor(1.0)).item()
        3.0
    """

    questions: float = 1.0
    batches: float = 1.0

    def of(self, loss: Tensor, penalty: Tensor | None) -> Tensor:
        """The loss to minimise, from the mean over questions and what does not depend on them.

        Args:
            loss: Mean loss of the questions of the micro-batch.
            penalty: What does not depend on the questions, such as a prior; None where there is none.
        """
        loss = loss if self.questions == 1 else self.questions * loss
        if penalty is None:
            return loss
        return loss + (penalty if self.batches == 1 else self.batches * penalty)


def shares(trainer: Any, batch_idx: int) -> list[StepShare]:
    """What micro-batch ``batch_idx`` of the epoch counts for, one share for each training loader.

    The numbers of questions come from the loaders' own samplers (:class:`~bayeslora.datamodules.sampler.TrainBatches`),
    so that ranks need not ask one another. Other loaders do not tell them; there every micro-batch of a step counts the
    same.

    Args:
        trainer: The trainer of the run.
        batch_idx: Position in the epoch.
    """
    loaders = trainer.train_dataloader
    together = trainer.accumulate_grad_batches
    first = batch_idx - batch_idx % together
    count = int(min(together, trainer.num_training_batches - first))
    found = []
    for loader in loaders if isinstance(loaders, list) else [loaders]:
        sizes = getattr(getattr(loader, "batch_sampler", None), "sizes", None)
        batches = together / count
        questions = batches if sizes is None else _questions(trainer, sizes(), batch_idx, first, count)
        found.append(StepShare(questions, batches))
    return found


def _questions(trainer: Any, sizes: list[int], batch_idx: int, first: int, count: int) -> float:
    own = len(range(trainer.global_rank, sizes[batch_idx], trainer.world_size))
    return trainer.world_size * trainer.accumulate_grad_batches * own / sum(sizes[first : first + count])
