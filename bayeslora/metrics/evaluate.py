"""From predictions to the numbers of ``metrics.json``."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from bayeslora.errors import UsageError
from bayeslora.metrics import means, scores
from bayeslora.metrics.answers import UNKNOWN, Answers
from bayeslora.metrics.calibration import ECE, ECEFloor
from bayeslora.metrics.ranking import AUROC
from bayeslora.types import CONTRACT_VERSION

FLOOR_BINS = 15


def uncertainty_scores(answers: Answers) -> dict[str, Tensor]:
    """The scores by which a question may be called uncertain, each ``[N]`` and higher where it is more so."""
    return {
        "one_minus_confidence": 1 - scores.confidence(answers.probs),
        "total": answers.total,
        "aleatoric": answers.aleatoric,
        "epistemic": answers.epistemic,
    }


def evaluate(datasets: Mapping[str, Answers], method: str, seed: int | None) -> dict[str, Any]:
    """Everything that ``metrics.json`` says about a run.

    Args:
        datasets: Name to answers, the in-distribution test set first. Every other set is also scored on how well each
            uncertainty tells it from the first.
        method: Name of the method.
        seed: Seed of the run.

    Returns:
        ``{"schema", "method", "seed", "n_members", "datasets": {name: {metric: number}}, "ood": {name: {score:
        {metric: number}}}}``; ``n_members`` is None for a Gaussian.

    Raises:
        UsageError: If a label is not known.
    """
    first, *others = datasets
    return {
        "schema": CONTRACT_VERSION,
        "method": method,
        "seed": seed,
        "n_members": datasets[first].n_members,
        "datasets": {name: evaluate_dataset(name, answers) for name, answers in datasets.items()},
        "ood": {name: detection(datasets[first], datasets[name]) for name in others},
    }


def evaluate_dataset(name: str, answers: Answers) -> dict[str, float | int]:
    """The metrics of one dataset, by name."""
    unlabelled = int((answers.label == UNKNOWN).sum())
    if unlabelled:
        raise UsageError(f"{unlabelled} of {len(answers)} questions of {name} have no label; metrics need all of them")
    probs, label = answers.probs, answers.label
    tensors = {
        "accuracy": means.Accuracy()(probs, label),
        "nll": means.NLL()(probs, label),
        "brier": means.Brier()(probs, label),
        **{f"ece_{n}": ECE(n)(probs, label) for n in (10, 15, 20)},
        f"ece_{FLOOR_BINS}_floor": ECEFloor(FLOOR_BINS)(probs),
        "mean_confidence": means.Mean()(scores.confidence(probs)),
        "total": means.Mean()(answers.total),
        "aleatoric": means.Mean()(answers.aleatoric),
        "epistemic": means.Mean()(answers.epistemic),
    }
    if answers.logits is not None and answers.logsumexp is not None:
        tensors["outside_mass"] = means.Mean()(scores.outside_mass(answers.logits, answers.logsumexp))
    if answers.true_probs is not None:
        tensors |= _expectations(probs, answers.true_probs)
    return {"n": len(answers)} | {key: float(value) for key, value in tensors.items()}


def _expectations(probs: Tensor, true_probs: Tensor) -> dict[str, Tensor]:
    return {
        "expected_accuracy": means.ExpectedAccuracy()(probs, true_probs),
        "expected_nll": means.ExpectedNLL()(probs, true_probs),
        "expected_brier": means.ExpectedBrier()(probs, true_probs),
        "expected_calibration_gap": means.ExpectedCalibrationGap()(probs, true_probs),
        "kl": means.Divergence()(probs, true_probs),
    }


def detection(familiar: Answers, unfamiliar: Answers) -> dict[str, dict[str, float]]:
    """How well each uncertainty tells ``unfamiliar`` (positive) from ``familiar``: score to metric to number."""
    positive = torch.cat([torch.zeros(len(familiar)), torch.ones(len(unfamiliar))]).bool()
    low, high = uncertainty_scores(familiar), uncertainty_scores(unfamiliar)
    return {name: {"auroc": float(AUROC()(torch.cat([low[name], high[name]]), positive))} for name in low}
