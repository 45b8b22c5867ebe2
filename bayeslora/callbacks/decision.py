"""Fits a run's decision rule: which answers to give so that few are wrong, and which options to name."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities import move_data_to_device, rank_zero_info

from bayeslora.callbacks.attached import Attached, LabelFn
from bayeslora.callbacks.collected import Collected
from bayeslora.callbacks.fit_data import RemembersFit, require_validation, validation_as_tested
from bayeslora.callbacks.predictions import Predictions, method_of
from bayeslora.callbacks.run_folder import keeps
from bayeslora.decisions.rule import RISKS, DecisionRule, describe, fit_rule
from bayeslora.decisions.rule_file import FILE, save_rule
from bayeslora.errors import UsageError
from bayeslora.lightning_modules.prediction_path import LogitsFn, prediction_path
from bayeslora.metrics.answers import Answers

CALIBRATION_FILE = "calibration.parquet"
NO_VALIDATION = "Decision has no validation questions to look for thresholds on; give the data some"


class Decision(RemembersFit, Attached):
    """Fits a :class:`~bayeslora.decisions.rule.DecisionRule` when a run is tested, on what its whole path predicts.

    The datamodule's calibration part (``calibration_dataloader``, from ``data.calibration``) is predicted as the test
    sets are, behind posterior and temperature, and so are the validation questions, which say where to look for
    thresholds. Without a calibration part the validation questions serve twice and every promise is approximate. The
    rule is kept as ``posterior/decision.json``, for serving, and beside the predictions of the test, for the report;
    the predictions it follows from as ``posterior/calibration.parquet``.

    Args:
        risk: Largest error rate among answers; the promise by which questions are left to a person.
        delta: Probability, over calibration sets, with which the error may be above it.
        alpha: Probability with which a prediction set may miss the right option.
        risks: Further error rates to find thresholds for.
        set_method: Kind of prediction set that is given: ``lac``, ``aps`` or ``raps``.
        logits_fn: For modules that are not of this package: ``(module, batch)`` to logits ``[B, C]``.
        label_fn: For batches that are not of this package: batch to labels ``[B]``.

    Example:
        >>> import lightning as L
        >>> from bayeslora import Decision, Predictions
        >>> trainer = L.Trainer(callbacks=[Decision(risk=0.05), Predictions()], logger=False, accelerator="cpu")
    """

    def __init__(
        self,
        risk: float = 0.05,
        delta: float = 0.1,
        alpha: float = 0.1,
        risks: Sequence[float] = RISKS,
        set_method: str = "lac",
        logits_fn: LogitsFn | None = None,
        label_fn: LabelFn | None = None,
    ) -> None:
        self.options = {"risk": risk, "delta": delta, "alpha": alpha, "risks": risks, "set_method": set_method}
        self.logits_fn, self.label_fn = logits_fn, label_fn
        self.rule: DecisionRule | None = None

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Before the first step, look for the validation questions.

        Raises:
            UsageError: there are none.
        """
        super().on_train_start(trainer, pl_module)
        require_validation(trainer, pl_module, NO_VALIDATION)

    def on_test_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Predict both parts and fit; everything is on the prediction path by now.

        Raises:
            UsageError: there are no validation questions, or options that are not allowed.
        """
        parts = self._parts(trainer, pl_module)
        selection, calibration = (self._predict(trainer, pl_module, *part) if part else None for part in parts)
        assert selection is not None
        self.rule = fit_rule(selection, calibration, method_of(pl_module), **self.options)  # type: ignore[arg-type]
        if keeps(trainer):
            kept = {"validation": selection, "calibration": calibration}
            self._save(trainer, self.rule, {name: part for name, part in kept.items() if part is not None})
        for line in describe(self.rule):
            rank_zero_info(line)

    on_predict_epoch_end = on_test_epoch_end

    def _parts(self, trainer: L.Trainer, pl_module: L.LightningModule) -> list[tuple[str, Any] | None]:
        """Names and loaders of the selection part and of the calibration part, the latter None where there is none."""
        source: Any = trainer.datamodule or pl_module  # type: ignore[attr-defined]
        validation = validation_as_tested(trainer, pl_module)
        loaders = {"validation": validation, "calibration": _some(_made(source, "calibration_dataloader"))}
        if loaders["validation"] is None:
            raise UsageError(NO_VALIDATION)
        return [(name, loader) if loader is not None else None for name, loader in loaders.items()]

    def _predict(self, trainer: L.Trainer, pl_module: L.LightningModule, name: str, loader: Any) -> Answers:
        path = prediction_path(pl_module, self.logits_fn)
        collected = Collected(self.label_fn, None)
        with torch.no_grad(), trainer.precision_plugin.forward_context():
            for batch in loader:
                batch = move_data_to_device(batch, pl_module.device)
                collected.add(trainer, path(batch), batch, name)
        return collected.answers(trainer)[name]

    def _save(self, trainer: L.Trainer, rule: DecisionRule, parts: dict[str, Answers]) -> None:
        from bayeslora.results import prediction_file  # pyarrow takes its time to load

        root = Path(trainer.default_root_dir)
        prediction_file.write_predictions(
            prediction_file.PredictionFile(parts, rule.method), root / "posterior" / CALIBRATION_FILE
        )
        results = [c.file.parent for c in trainer.callbacks if isinstance(c, Predictions) and c.file is not None]  # type: ignore[attr-defined]
        for folder in (root / "posterior", *results):
            save_rule(rule, folder / FILE)


def _made(source: Any, name: str) -> Any:
    """A loader of a datamodule or module; None where it does not know of such questions."""
    make = getattr(source, name, None)
    return None if make is None else make()


def _some(loader: Any) -> Any:
    """A loader that has questions, for all processes; None where it has none."""
    return loader if loader is not None and len(getattr(loader, "dataset", loader)) else None
