"""How well a score tells two groups of questions apart: unfamiliar from familiar, wrong from right.

torchmetrics' AUROC passes a batch through a sigmoid if any of its scores leaves [0, 1], so that an entropy is on
another scale in one batch than in the next; the ranks here are taken over the scores as they are.
"""

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric


def auroc(score: Tensor, positive: Tensor) -> Tensor:
    r"""Area under the ROC curve: :math:`P(s^+ > s^-) + \frac12 P(s^+ = s^-)`, by ranks (Mann-Whitney).

    Args:
        score: Scores ``[N]``; higher means "more likely positive".
        positive: Which are positive, bool ``[N]``.

    Returns:
        A float64 scalar; NaN unless both groups are present.
    """
    _, group, size = torch.unique(score, return_inverse=True, return_counts=True)
    rank = (size.cumsum(0) - (size - 1) / 2).double()[group]  # ties share the mean of their ranks
    n_positive = positive.sum().double()
    n_negative = len(score) - n_positive
    return (rank[positive].sum() - n_positive * (n_positive + 1) / 2) / (n_positive * n_negative)


class Ranking(Metric):
    """Scores of two groups of questions, kept for a statistic of their order.

    Args:
        kwargs: Those of ``torchmetrics.Metric``.
    """

    full_state_update = False
    higher_is_better = True
    scores: list[Tensor]
    positives: list[Tensor]

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("scores", [], dist_reduce_fx="cat")
        self.add_state("positives", [], dist_reduce_fx="cat")
        self.set_dtype(torch.float64)  # also the dtype in which a rank without data takes part in gathering

    def update(self, score: Tensor, positive: Tensor) -> None:
        """Add scores ``[B]`` and whether each belongs to the positive group, bool ``[B]``."""
        self.scores.append(score.double())
        self.positives.append(positive.double())

    def gathered(self) -> tuple[Tensor, Tensor]:
        """All scores, float64 ``[N]``, and whether each is positive, bool ``[N]``."""
        return cat_state(self.scores), cat_state(self.positives).bool()


class AUROC(Ranking):
    """Area under the ROC curve, ties counted half, see :func:`auroc`."""

    def compute(self) -> Tensor:
        """The area over everything seen."""
        return auroc(*self.gathered())


def cat_state(state: list[Tensor] | Tensor) -> Tensor:
    """A list state as one tensor; torchmetrics has already concatenated it where ranks were gathered."""
    return state if isinstance(state, Tensor) else torch.cat(state)
