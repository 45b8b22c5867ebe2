r"""How well a score tells two groups of questions apart: unfamiliar from familiar, wrong from right.

torchmetrics' AUROC passes a batch through a sigmoid if any of its scores leaves [0, 1], so that an entropy is on
another scale in one batch than in the next; here scores are taken as they are, and only their order matters.

Every statistic takes ``weight [..., N]``: how often each question counts. Ones give the statistic itself, counts of a
resample ``[R, N]`` give R bootstrap replicates at once.
"""

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

TRUE_POSITIVE_RATE = 0.95


def auroc(score: Tensor, positive: Tensor, weight: Tensor | None = None) -> Tensor:
    r"""Area under the ROC curve: :math:`P(s^+ > s^-) + \frac12 P(s^+ = s^-)`.

    Args:
        score: Scores ``[N]``; higher means "more likely positive".
        positive: Which are positive, bool ``[N]``.
        weight: How often each counts ``[..., N]``; None for once.

    Returns:
        Float64 ``[...]``; NaN unless both groups are present.
    """
    hits, misses = _by_threshold(score, positive, weight)
    below = misses.sum(-1, keepdim=True) - misses.cumsum(-1)
    return (hits * (below + misses / 2)).sum(-1) / (hits.sum(-1) * misses.sum(-1))


def average_precision(score: Tensor, positive: Tensor, weight: Tensor | None = None) -> Tensor:
    r"""Area under the precision-recall curve, :math:`\sum_t (R_t - R_{t-1}) P_t` over thresholds t from the highest.

    Arguments and result as of :func:`auroc`.

    Args:
        score: Scores ``[..., N]``; higher means rather positive.
        positive: Whether each belongs to the positive group, bool ``[..., N]``.
        weight: Weight of each ``[..., N]``; None weighs all alike.
    """
    hits, misses = _by_threshold(score, positive, weight)
    found = hits.cumsum(-1)
    precision = found / (found + misses.cumsum(-1)).clamp(min=torch.finfo(torch.float64).tiny)
    return (hits * precision).sum(-1) / hits.sum(-1)


def fpr_at_tpr(score: Tensor, positive: Tensor, weight: Tensor | None = None) -> Tensor:
    """Smallest rate of false positives among the thresholds that find at least 95 % of the positives.

    Arguments and result as of :func:`auroc`.

    Args:
        score: Scores ``[..., N]``; higher means rather positive.
        positive: Whether each belongs to the positive group, bool ``[..., N]``.
        weight: Weight of each ``[..., N]``; None weighs all alike.
    """
    hits, misses = _by_threshold(score, positive, weight)
    recall = hits.cumsum(-1) / hits.sum(-1, keepdim=True)
    enough = (recall >= TRUE_POSITIVE_RATE - 1e-12).double().argmax(-1, keepdim=True)
    return misses.cumsum(-1).gather(-1, enough).squeeze(-1) / misses.sum(-1)


def _by_threshold(score: Tensor, positive: Tensor, weight: Tensor | None) -> tuple[Tensor, Tensor]:
    """Weight of the positives and of the negatives at each distinct score, the highest first: float64 ``[..., U]``."""
    values, group = torch.unique(score, return_inverse=True)
    weight = torch.ones_like(score, dtype=torch.float64) if weight is None else weight
    zeros = torch.zeros(*weight.shape[:-1], len(values), dtype=torch.float64, device=score.device)
    place = len(values) - 1 - group
    return zeros.index_add(-1, place, weight * positive), zeros.index_add(-1, place, weight * ~positive)


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


class Detection(Ranking):
    """How well an uncertainty (higher means stranger) detects unfamiliar questions, the positive group.

    Four numbers: ``auroc``; ``aupr_out`` and ``aupr_in``, the average precision with unfamiliar and with familiar
    questions as what is looked for; ``fpr95``, the fraction of unfamiliar questions that pass as familiar where 95 % of
    the familiar ones do (Liang et al. 2018).
    """

    def compute(self) -> dict[str, Tensor]:
        """The four over everything seen."""
        score, unfamiliar = self.gathered()
        return {
            "auroc": auroc(score, unfamiliar),
            "aupr_out": average_precision(score, unfamiliar),
            "aupr_in": average_precision(-score, ~unfamiliar),
            "fpr95": fpr_at_tpr(-score, ~unfamiliar),
        }


def cat_state(state: list[Tensor] | Tensor) -> Tensor:
    """A list state as one tensor; torchmetrics has already concatenated it where ranks were gathered."""
    return state if isinstance(state, Tensor) else torch.cat(state)
