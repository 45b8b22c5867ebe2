"""Metrics of predictions: torchmetrics classes that agree in any order, in any batches and on any number of ranks."""

from bayeslora.metrics.answers import UNKNOWN, Answers
from bayeslora.metrics.bins import ece_floor
from bayeslora.metrics.calibration import ECE, MCE, AdaptiveECE, ClasswiseECE, ECEFloor
from bayeslora.metrics.evaluate import evaluate, uncertainty_scores
from bayeslora.metrics.intervals import bootstrap, clopper_pearson, over_seeds
from bayeslora.metrics.means import (
    NLL,
    Accuracy,
    Brier,
    Divergence,
    ExpectedAccuracy,
    ExpectedBrier,
    ExpectedCalibrationGap,
    ExpectedNLL,
    Mean,
)
from bayeslora.metrics.ranking import AUROC, Detection, auroc, average_precision, fpr_at_tpr
from bayeslora.metrics.selective import AURC, AccuracyAtCoverage, CoverageAtError, risk_curve

__all__ = [
    "AURC",
    "AUROC",
    "ECE",
    "MCE",
    "NLL",
    "UNKNOWN",
    "Accuracy",
    "AccuracyAtCoverage",
    "AdaptiveECE",
    "Answers",
    "Brier",
    "ClasswiseECE",
    "CoverageAtError",
    "Detection",
    "Divergence",
    "ECEFloor",
    "ExpectedAccuracy",
    "ExpectedBrier",
    "ExpectedCalibrationGap",
    "ExpectedNLL",
    "Mean",
    "auroc",
    "average_precision",
    "bootstrap",
    "clopper_pearson",
    "ece_floor",
    "evaluate",
    "fpr_at_tpr",
    "over_seeds",
    "risk_curve",
    "uncertainty_scores",
]
