"""From predictions to the numbers of ``metrics.json``."""

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torchmetrics.functional import spearman_corrcoef

from bayeslora.errors import UsageError
from bayeslora.metrics import calibration, means, scores, selective
from bayeslora.metrics.answers import UNKNOWN, Answers
from bayeslora.metrics.bins import bin_index
from bayeslora.metrics.intervals import bootstrap, clopper_pearson
from bayeslora.metrics.ranking import AUROC, Detection, auroc
from bayeslora.types import CONTRACT_VERSION

FLOOR_BINS = 15
COVERAGES = (0.5, 0.8, 0.9)
ERRORS = (0.02, 0.05, 0.1)
INTERVALS = "interval_95"
TEMPERATURE = "test/temperature"  # what loggers and ``trainer.test`` call a fitted temperature


def uncertainty_scores(answers: Answers) -> dict[str, Tensor]:
    """The scores by which a question may be called uncertain, each ``[N]`` and higher where it is more so."""
    return {
        "one_minus_confidence": 1 - scores.confidence(answers.probs),
        "total": answers.total,
        "aleatoric": answers.aleatoric,
        "epistemic": answers.epistemic,
    }


def evaluate(datasets: Mapping[str, Answers], method: str, seed: int | None, intervals: bool = True) -> dict[str, Any]:
    """Everything that ``metrics.json`` says about a run.

    Args:
        datasets: Name to answers, the in-distribution test set first. Every other set is also scored on how well each
            uncertainty tells it from the first.
        method: Name of the method.
        seed: Seed of the run.
        intervals: Add intervals over the questions under "interval_95".

    Returns:
        A dictionary of ``schema``, ``method``, ``seed``, ``n_members``, ``datasets`` (by name, numbers by metric) and
        ``ood`` (by name, by score, numbers by metric); ``n_members`` is None for a Gaussian. A number that is not
        defined (an AUROC where everything is right) is None.

    Raises:
        UsageError: If a label is not known.
    """
    first, *others = datasets
    return {
        "schema": CONTRACT_VERSION,
        "method": method,
        "seed": seed,
        "n_members": datasets[first].n_members,
        "datasets": {name: _dataset(name, answers, intervals) for name, answers in datasets.items()},
        "ood": {name: _detection(datasets[first], datasets[name], intervals) for name in others},
    }


def _dataset(name: str, answers: Answers, intervals: bool) -> dict[str, Any]:
    unlabelled = int((answers.label == UNKNOWN).sum())
    if unlabelled:
        raise UsageError(
            f"{unlabelled} of {len(answers)} questions of {name} have no label; metrics need all of them (for a module "
            "of another kind, give Predictions a label_fn)"
        )
    tensors = _calibration(answers) | _selective(answers) | _means(answers)
    if answers.true_probs is not None:
        tensors |= _expectations(answers.probs, answers.true_probs) | _rank_correlations(answers, answers.true_probs)
    numbers: dict[str, Any] = {"n": len(answers)} | {key: _number(value) for key, value in tensors.items()}
    return numbers | ({INTERVALS: _dataset_intervals(answers)} if intervals else {})


def _means(answers: Answers) -> dict[str, Tensor]:
    probs, label = answers.probs, answers.label
    tensors = {
        "accuracy": means.Accuracy()(probs, label),
        "nll": means.NLL()(probs, label),
        "brier": means.Brier()(probs, label),
        "mean_confidence": means.Mean()(scores.confidence(probs)),
        "total": means.Mean()(answers.total),
        "aleatoric": means.Mean()(answers.aleatoric),
        "epistemic": means.Mean()(answers.epistemic),
    }
    if answers.logits is not None and answers.logsumexp is not None:
        tensors["outside_mass"] = means.Mean()(scores.outside_mass(answers.logits, answers.logsumexp))
    return tensors


def _calibration(answers: Answers) -> dict[str, Tensor]:
    probs, label = answers.probs, answers.label
    return {
        **{f"ece_{n}": calibration.ECE(n)(probs, label) for n in (10, 15, 20)},
        f"ece_{FLOOR_BINS}_floor": calibration.ECEFloor(FLOOR_BINS)(probs),
        "adaptive_ece": calibration.AdaptiveECE(FLOOR_BINS)(probs, label),
        "classwise_ece": calibration.ClasswiseECE(probs.shape[1], FLOOR_BINS)(probs, label),
        "mce": calibration.MCE(FLOOR_BINS)(probs, label),
    }


def _selective(answers: Answers) -> dict[str, Tensor]:
    probs, label = answers.probs, answers.label
    wrong = ~scores.correct(probs, label)
    return {
        "aurc": selective.AURC()(probs, label),
        **{f"accuracy_at_{100 * c:.0f}": selective.AccuracyAtCoverage(c)(probs, label) for c in COVERAGES},
        **{f"coverage_at_{100 * e:g}": selective.CoverageAtError(e)(probs, label) for e in ERRORS},
        **{f"wrong_auroc_{name}": AUROC()(score, wrong) for name, score in uncertainty_scores(answers).items()},
    }


def _expectations(probs: Tensor, true_probs: Tensor) -> dict[str, Tensor]:
    return {
        "expected_accuracy": means.ExpectedAccuracy()(probs, true_probs),
        "expected_nll": means.ExpectedNLL()(probs, true_probs),
        "expected_brier": means.ExpectedBrier()(probs, true_probs),
        "expected_calibration_gap": means.ExpectedCalibrationGap()(probs, true_probs),
        "kl": means.Divergence()(probs, true_probs),
    }


def _rank_correlations(answers: Answers, true_probs: Tensor) -> dict[str, Tensor]:
    """How well each uncertainty orders questions by the entropy of their true answer: Spearman's rank correlation."""
    entropy = torch.special.entr(true_probs).sum(-1)
    found = {}
    for name, score in uncertainty_scores(answers).items():
        constant = bool((score == score[0]).all() or (entropy == entropy[0]).all())
        value = score.new_tensor(math.nan) if constant else spearman_corrcoef(score.double(), entropy.double())
        found[f"entropy_correlation_{name}"] = value
    return found


def _dataset_intervals(answers: Answers) -> dict[str, list[float]]:
    """Intervals of the headline metrics: exact for accuracy, else bootstrap's, clipped to where the metric can be."""
    probs, label = answers.probs, answers.label
    confidence, correct = scores.confidence(probs), scores.correct(probs, label).double()
    in_bin = torch.nn.functional.one_hot(bin_index(confidence, FLOOR_BINS), FLOOR_BINS).double()
    gaps = in_bin * (correct - confidence)[:, None]
    per_question = {"nll": scores.nll(probs, label), "brier": scores.brier(probs, label)}
    statistics: dict[str, Callable[[Tensor], Tensor]] = {
        name: partial(_weighted_mean, values) for name, values in per_question.items()
    }
    statistics[f"ece_{FLOOR_BINS}"] = lambda weight: (weight @ gaps).abs().sum(-1) / len(answers)
    exact = {"accuracy": list(clopper_pearson(int(correct.sum()), len(answers)))}
    return exact | _clipped(bootstrap(statistics, [len(answers)]), {"nll": math.inf, "brier": 2.0})


def _weighted_mean(values: Tensor, weight: Tensor) -> Tensor:
    return weight @ values / len(values)


def _clipped(found: dict[str, tuple[float, float]], top: dict[str, float]) -> dict[str, list[float]]:
    return {name: [min(max(end, 0.0), top.get(name, 1.0)) for end in ends] for name, ends in found.items()}


def _detection(familiar: Answers, unfamiliar: Answers, intervals: bool) -> dict[str, dict[str, Any]]:
    """How well each uncertainty tells ``unfamiliar`` (positive) from ``familiar``: score to metric to number."""
    sizes = [len(familiar), len(unfamiliar)]
    positive = torch.arange(sum(sizes)) >= sizes[0]
    low, high = uncertainty_scores(familiar), uncertainty_scores(unfamiliar)
    joined = {name: torch.cat([low[name], high[name]]) for name in low}
    result: dict[str, dict[str, Any]] = {
        name: {key: _number(value) for key, value in Detection()(score, positive).items()}
        for name, score in joined.items()
    }
    if intervals:
        statistics = {name: partial(auroc, score, positive) for name, score in joined.items()}
        for name, ends in _clipped(bootstrap(statistics, sizes), {}).items():
            result[name][INTERVALS] = {"auroc": ends}
    return result


def _number(value: Tensor) -> float | None:
    return None if value.isnan() else float(value)
