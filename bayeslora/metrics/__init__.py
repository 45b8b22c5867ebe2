"""Metrics of predictions: torchmetrics classes that agree in any order, in any batches and on any number of ranks."""

from bayeslora.metrics.answers import UNKNOWN, Answers
from bayeslora.metrics.bins import ece_floor
from bayeslora.metrics.calibration import ECE, ECEFloor
from bayeslora.metrics.evaluate import evaluate, uncertainty_scores
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
from bayeslora.metrics.ranking import AUROC, auroc

__all__ = [
    "AUROC",
    "ECE",
    "NLL",
    "UNKNOWN",
    "Accuracy",
    "Answers",
    "Brier",
    "Divergence",
    "ECEFloor",
    "ExpectedAccuracy",
    "ExpectedBrier",
    "ExpectedCalibrationGap",
    "ExpectedNLL",
    "Mean",
    "auroc",
    "ece_floor",
    "evaluate",
    "uncertainty_scores",
]
