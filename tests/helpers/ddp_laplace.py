"""Laplace's fits and what they predict, on one process or on several."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from bayeslora import Backbone, Laplace, LoRA, LoRAModule, Predictions
from bayeslora.datamodules import JSONLDataModule
from bayeslora.results.prediction_file import read_predictions
from tests.helpers.runs import trainer

CASES: dict[str, dict[str, Any]] = {
    "full": {"structure": "full", "precision": "validation", "prior_mean": "initial"},
    "full refit": {"structure": "full", "mean": "refit", "precision": 10.0, "directory": "memory"},
    "last layer": {"structure": "full", "subset_of_weights": "last", "directory": "memory"},
    "kfac": {"structure": "kfac"},
    "ekfac": {"structure": "ekfac", "directory": "memory"},
    "diag": {"structure": "diag", "subset_of_weights": "last"},
    "kfac_expand": {"structure": "kfac_expand", "directory": "memory"},
}


def fitted(case: str, root: Path, data: Path, processes: int) -> dict[str, Any]:
    """What a fit at factors that are not zero found, and what it predicts for the test questions.

    Args:
        case: Of ``CASES``.
        root: Run folder.
        data: Of the questions.
        processes: How many share the questions.
    """
    module = LoRAModule(Backbone("embedded"), LoRA(dropout=0.1), seed=1)
    module.configure_model()
    source = torch.Generator().manual_seed(2)
    for name, parameter in module.trainable().items():
        if ".lora_B." in name:
            parameter.data.copy_(0.05 * torch.randn(parameter.shape, generator=source))
    laplace = Laplace(**CASES[case], dtype="float32", prune=0.0)
    strategy = {"devices": processes, "strategy": "ddp" if processes > 1 else "auto"}
    run = trainer(root, callbacks=[laplace, Predictions(overwrite=True)], **strategy)
    run.test(module, datamodule=JSONLDataModule(path=str(data), batch_size=8, eval_batch_size=8, seed=1), verbose=False)
    answers = next(iter(read_predictions(root / "test" / "predictions.parquet").datasets.values()))
    figures = {name: laplace.report[name] for name in ("questions", "log_likelihood", "log_evidence")}
    precision = {name: laplace.report[name] for name in ("precision", "gamma")}
    record = json.loads((root / "posterior" / "posterior.json").read_text())
    return {**figures, **precision, "saved": record["family"], "covariance": answers.logit_cov, "probs": answers.probs}


def of_cases(cases: Iterable[str], *arguments: Any) -> dict[str, dict[str, Any]]:
    """What :func:`fitted` gives for each case, one after the other."""
    return {case: fitted(case, *arguments) for case in cases}
