"""What predictions of one set of questions say about the training they were made in: pure functions, no model.

Right answers are bool ``[N]``, members' probabilities ``[N, M, C]``; entropies are in nats.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import combinations

import numpy as np
import torch
from torch import Tensor

from bayeslora.errors import UsageError
from bayeslora.metrics import scores
from bayeslora.metrics.answers import Answers
from bayeslora.metrics.bins import bin_index, bin_sums
from bayeslora.metrics.evaluate import FLOOR_BINS, uncertainty_scores
from bayeslora.metrics.intervals import bootstrap
from bayeslora.metrics.ranking import auroc

ECE = f"ece_{FLOOR_BINS}"
QUALITY = ("accuracy", "nll", "brier", ECE)
UNCERTAINTIES = ("total", "aleatoric", "epistemic")
CELLS = ("retained", "forgotten", "acquired", "never")
SCORES = ("one_minus_confidence", "total", "epistemic")
RESAMPLES = 1000


def quality(probs: Tensor, label: Tensor) -> dict[str, float]:
    """Accuracy, NLL, Brier score and ECE (15 bins) of probabilities ``[N, C]``.

    Args:
        probs: Probabilities of the options ``[N, C]``; 0 where there is no such option.
        label: Index of the right option ``[N]``.
    """
    confidence, right = scores.confidence(probs), scores.correct(probs, label)
    count, sure, correct = bin_sums(confidence, right, bin_index(confidence, FLOOR_BINS), FLOOR_BINS)
    values = (right.double().mean(), scores.nll(probs, label).mean(), scores.brier(probs, label).mean())
    return dict(zip(QUALITY, [*map(float, values), float((correct - sure).abs().sum() / count.sum())], strict=True))


def one_and_all(answers: Answers) -> dict[str, dict[str, float | None]]:
    """Quality of the averaged prediction, and mean and standard deviation (n - 1) of that of one member.

    Returns:
        Metric to ``{"ensemble", "member", "member_sd"}``; no deviation for a single member.
    """
    members = _members(answers)
    whole = quality(answers.probs, answers.label)
    each = [quality(members[:, m], answers.label) for m in range(members.shape[1])]
    found = {name: _mean_sd([one[name] for one in each]) for name in QUALITY}
    return {
        name: {"ensemble": whole[name], "member": mean, "member_sd": deviation}
        for name, (mean, deviation) in found.items()
    }


def uncertainty(answers: Answers) -> dict[str, tuple[float, float]]:
    """Mean total, aleatoric and epistemic uncertainty of the questions, each with its standard error."""
    values = {name: getattr(answers, name) for name in UNCERTAINTIES}
    return {name: (float(v.mean()), float(v.std()) / math.sqrt(len(v))) for name, v in values.items()}


def disagreement(answers: Answers) -> Tensor:
    """Fraction of questions to which two members give different answers ``[M, M]``."""
    choice = _members(answers).argmax(-1)
    return (choice[:, :, None] != choice[:, None, :]).double().mean(0)


def pairs(matrix: Tensor) -> Tensor:
    """The entries of a symmetric matrix ``[M, M]`` that belong to pairs of different members ``[M (M - 1) / 2]``."""
    rows, columns = torch.triu_indices(len(matrix), len(matrix), 1)
    return matrix[rows, columns]


def cells(base: Tensor, now: Tensor) -> dict[str, Tensor]:
    """Which questions are retained (right in the base and now), forgotten, acquired, never right: bool ``[N]`` each.

    ``never`` says wrong before training and now, whatever was in between.

    Args:
        base: Whether the model before training is right, bool ``[N]``.
        now: The same for the epoch at hand ``[N]``.
    """
    return dict(zip(CELLS, (base & now, base & ~now, ~base & now, ~base & ~now), strict=True))


def retained_fraction(then: Tensor, now: Tensor) -> float | None:
    r"""Fraction of what was right ``then`` that is right now, :math:`|C \cap C'| / |C|`; None where nothing was.

    Args:
        then: Whether each question was right at an earlier epoch, bool ``[N]``.
        now: The same for the epoch at hand ``[N]``.
    """
    return float(now[then].double().mean()) if then.any() else None


def changed_fraction(before: Tensor, now: Tensor) -> float:
    """Fraction of questions whose value is not what it was ``[N]``.

    Args:
        before: The values at an earlier epoch ``[N]``.
        now: The same for the epoch at hand ``[N]``.
    """
    return float((before != now).double().mean())


def member_subsets(members: int, size: int, most: int, seed: int = 0) -> list[tuple[int, ...]]:
    """All subsets of ``size`` members, or ``most`` different ones drawn at random where there are more.

    Args:
        members: Number of members.
        size: Number of members in a subset.
        most: Most subsets.
        seed: Names the stream of random numbers; the same seed gives the same result.
    """
    if math.comb(members, size) <= most:
        return list(combinations(range(members), size))
    generator = torch.Generator().manual_seed(seed)
    drawn: dict[tuple[int, ...], None] = {}
    while len(drawn) < most:
        drawn[tuple(sorted(torch.randperm(members, generator=generator)[:size].tolist()))] = None
    return list(drawn)


def against_members(answers: Answers, most: int = 50) -> Iterator[dict[str, float | int | None]]:
    """Quality and mutual information against the number of members, over subsets of the members there are.

    Subsets share members, so that their standard deviation (``..._sd``) is a spread and no standard error.

    Args:
        answers: What a method predicted for N questions, with their labels.
        most: Most subsets.
    """
    members = _members(answers)
    for size in range(1, members.shape[1] + 1):
        subsets = member_subsets(members.shape[1], size, most)
        found = [_of_subset(members[:, list(subset)], answers.label) for subset in subsets]
        row: dict[str, float | int | None] = {"members": size, "subsets": len(subsets)}
        for name in found[0]:
            row[name], row[f"{name}_sd"] = _mean_sd([values[name] for values in found])
        yield row


def _of_subset(members: Tensor, label: Tensor) -> dict[str, float]:
    probs = members.mean(1)
    entropy, expected = torch.special.entr(probs).sum(-1), torch.special.entr(members).sum(-1).mean(1)
    return quality(probs, label) | {"epistemic": float((entropy - expected).mean())}


def detection(familiar: Answers, unfamiliar: Answers, resamples: int = RESAMPLES) -> dict[str, dict[str, float]]:
    r"""How uncertainties tell unfamiliar (positive) questions from familiar ones, with 95 % bootstrap intervals.

    Args:
        familiar: Predictions in distribution.
        unfamiliar: Predictions out of distribution.
        resamples: Of the questions of each set.

    Returns:
        Score (1 - max p, total, epistemic) to ``{"auroc", "low", "high"}``, and ``"epistemic_difference"`` to
        ``{"difference", "low", "high"}``: mean mutual information out of, less that in distribution.
    """
    sizes = [len(familiar), len(unfamiliar)]
    positive = torch.arange(sum(sizes)) >= sizes[0]
    near, far = uncertainty_scores(familiar), uncertainty_scores(unfamiliar)
    joined = {name: torch.cat([near[name], far[name]]) for name in SCORES}
    signed = joined["epistemic"] * torch.where(positive, 1 / sizes[1], -1 / sizes[0])
    statistics: dict[str, Callable[[Tensor], Tensor]] = {
        name: partial(auroc, value, positive) for name, value in joined.items()
    }
    statistics["epistemic_difference"] = lambda weight: weight @ signed
    once = torch.ones(sum(sizes), dtype=torch.float64)
    result = {}
    for name, (low, high) in bootstrap(statistics, sizes, resamples).items():
        kind = "difference" if name == "epistemic_difference" else "auroc"
        bounds = (low, high) if kind == "difference" else (max(low, 0.0), min(high, 1.0))
        result[name] = {kind: float(statistics[name](once)), "low": bounds[0], "high": bounds[1]}
    return result


def joint_density(mutual_information: Tensor, entropy: Tensor, edges: Sequence[np.ndarray]) -> np.ndarray | None:
    """Density of (mutual information, entropy) over rectangles, which integrates to one; None without a question.

    Args:
        mutual_information: ``[n]``.
        entropy: ``[n]``.
        edges: Edges ``[X + 1]`` and ``[Y + 1]`` of the rectangles.

    Returns:
        ``[X, Y]``, in 1 / nats^2.
    """
    if not len(entropy):
        return None
    counts, _, _ = np.histogram2d(mutual_information.numpy(), entropy.numpy(), bins=list(edges), density=True)
    return np.asarray(counts)


def density_edges(sets: Mapping[str, Answers] | Sequence[Answers], bins: int) -> tuple[np.ndarray, np.ndarray]:
    """Common edges for mutual information and for entropy, from zero to the largest value of any question.

    Args:
        sets: The sets of questions, by name or in a row.
        bins: Number of bins along each axis.
    """
    every = list(sets.values()) if isinstance(sets, Mapping) else list(sets)
    tops = (max(float(getattr(a, name).max()) for a in every) for name in ("epistemic", "total"))
    mutual, entropy = (np.linspace(0, max(top, 1e-9), bins + 1) for top in tops)
    return mutual, entropy


def right(answers: Answers) -> Tensor:
    """Which questions the averaged prediction gets right, bool ``[N]``."""
    return scores.correct(answers.probs, answers.label)


def _members(answers: Answers) -> Tensor:
    if answers.members is None:
        raise UsageError("these predictions are Gaussians over logits; dynamics are those of members")
    return answers.members


def _mean_sd(values: Sequence[float]) -> tuple[float, float | None]:
    spread = float(np.std(values, ddof=1)) if len(values) > 1 else None
    return float(np.mean(values)), spread
