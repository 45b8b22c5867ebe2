"""Temperature scaling: one scalar, fitted on the validation questions, on top of any method."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities import move_data_to_device, rank_zero_warn
from torch import Tensor

from bayeslora.callbacks.attached import Attached, LabelFn, labels_of
from bayeslora.callbacks.fit_data import RemembersFit, require_validation, validation_as_tested
from bayeslora.callbacks.fit_key import tensors_digest
from bayeslora.callbacks.run_folder import keeps
from bayeslora.curvature.ranks import Ranks
from bayeslora.datamodules.option_order import orders_as_members
from bayeslora.errors import UsageError
from bayeslora.files import read_record, write_record
from bayeslora.lightning_modules.prediction_path import LogitsFn, PredictionPath, prediction_path
from bayeslora.types import AnswerBatch, Predictive

OWNER = "Temperature"
NO_VALIDATION = (
    "Temperature has no validation questions to fit on; give it val_batches, or the data some (or attach it to the "
    "trainer that tests only, with data that have some)"
)
LOWEST, HIGHEST = 0.05, 20.0


class Temperature(RemembersFit, Attached):
    r"""Divides every member's logits by one temperature T (Guo et al., 2017, arXiv:1706.04599).

    T minimises the negative log-likelihood of the validation questions under the averaged probabilities,
    :math:`-\sum_i \log \sum_s w_s\, \mathrm{softmax}(f_s(x_i) / T)_{y_i}`, by LBFGS on log T; where the data average
    predictions over orders of the options, s is over the orders of every member. It is fitted once
    for each set of weights and method, when they are first tested, and kept in ``posterior/temperature.json``.

    Args:
        max_iter: Most LBFGS iterations.
        logits_fn: For modules that are not of this package: ``(module, batch)`` to logits ``[B, C]``.
        label_fn: For batches that are not of this package: batch to labels ``[B]``.
        val_batches: Validation batches; None takes the DataModule's, those that ``fit`` was given in this process, or
            the module's own.

    Example:
        >>> import lightning as L
        >>> from bayeslora import Predictions, Temperature
        >>> trainer = L.Trainer(callbacks=[Temperature(), Predictions()], logger=False, accelerator="cpu")
    """

    def __init__(
        self,
        max_iter: int = 100,
        logits_fn: LogitsFn | None = None,
        label_fn: LabelFn | None = None,
        val_batches: Iterable[Any] | None = None,
    ) -> None:
        self.max_iter, self.logits_fn, self.val_batches = max_iter, logits_fn, val_batches
        self.label_fn = label_fn
        self.temperature: float | None = None

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Before the first step, look for what the test will need.

        Raises:
            UsageError: a module of another kind without ``logits_fn``, or no validation questions.
        """
        super().on_train_start(trainer, pl_module)
        prediction_path(pl_module, self.logits_fn)
        require_validation(trainer, pl_module, NO_VALIDATION, self.val_batches)

    def on_test_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Take a place on the prediction path; the fit waits until every posterior has taken its own."""
        self.temperature = None
        prediction_path(pl_module, self.logits_fn).append(OWNER, self._apply)

    def on_test_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Before the first batch, find the temperature."""
        if self.temperature is None:
            self.temperature = self._find(trainer, pl_module)

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Leave the prediction path."""
        prediction_path(pl_module, self.logits_fn).release(OWNER)

    on_predict_start, on_predict_batch_start, on_predict_end = on_test_start, on_test_batch_start, on_test_end

    def _apply(self, predictive: Predictive) -> Predictive:
        if self.temperature is None:
            raise RuntimeError("the temperature is applied before it was fitted")
        return predictive.tempered(self.temperature)

    def _find(self, trainer: L.Trainer, pl_module: L.LightningModule) -> float:
        """The temperature kept for these validation predictions, or a new fit."""
        path = prediction_path(pl_module, self.logits_fn)
        predictives, labels = self._validation(trainer, pl_module, path)
        key = tensors_digest([(p.log_mean, y) for p, y in zip(predictives, labels, strict=True)])
        file = Path(trainer.default_root_dir) / "posterior" / "temperature.json"
        if file.exists() and (kept := read_record(file, "remove it, it is fitted again")).get("predictions") == key:
            return float(kept["temperature"])
        temperature = fit_temperature(predictives, labels, self.max_iter)
        before, after = (
            _mean_nll(predictives, labels, torch.tensor(t, device="cpu")).item() for t in (1.0, temperature)
        )
        record = {"temperature": temperature, "n": len(torch.cat(labels)), "nll_before": before, "nll_after": after}
        if keeps(trainer):
            write_record(file, {**record, "predictions": key})
        return temperature

    def _validation(
        self, trainer: L.Trainer, pl_module: L.LightningModule, path: PredictionPath
    ) -> tuple[list[Predictive], list[Tensor]]:
        """Predictions and labels of the validation questions of all ranks, on every rank."""
        found: list[tuple[Predictive, Tensor]] = []
        label_of = self.label_fn or labels_of
        with torch.no_grad(), trainer.precision_plugin.forward_context():  # as the test itself is predicted
            for batch in validation_as_tested(trainer, pl_module, self.val_batches) or ():
                batch = move_data_to_device(batch, pl_module.device)
                predictive = path.untransformed(batch)
                if isinstance(batch, AnswerBatch) and batch.option_order is not None:
                    label, predictive = orders_as_members(batch, predictive)
                else:
                    label = label_of(batch)
                found.append((predictive.to("cpu"), label.cpu()))
        found = [pair for theirs in Ranks().gather(found) for pair in theirs]  # one temperature for all processes
        if not found:
            raise UsageError(NO_VALIDATION)
        predictives, labels = map(list, zip(*found, strict=True))
        return predictives, labels


def fit_temperature(predictives: list[Predictive], labels: list[Tensor], max_iter: int = 100) -> float:
    """The T that minimises the mean negative log-likelihood, by LBFGS on log T from T = 1.

    Args:
        predictives: Predictions of the validation questions, batch by batch.
        labels: Their labels ``[B]``.
        max_iter: Most LBFGS iterations.

    Returns:
        T between 0.05 and 20. A bound is returned, with a warning, where the likelihood has no optimum between
        them, the one of the two with the smaller negative log-likelihood.
    """
    with torch.inference_mode(False), torch.enable_grad():
        # tests run in inference mode, whose tensors no gradient may flow through: clones may
        predictives = [p.map(torch.clone) for p in predictives]
        labels = [label.clone() for label in labels]
        log_temperature = torch.zeros((), dtype=torch.float64, requires_grad=True, device="cpu")
        optimizer = torch.optim.LBFGS([log_temperature], max_iter=max_iter, line_search_fn="strong_wolfe")

        def closure() -> Tensor:
            """The loss at the current temperature, with its gradient, as LBFGS asks for it."""
            optimizer.zero_grad()
            loss = _mean_nll(predictives, labels, log_temperature.exp())
            loss.backward()
            return loss

        optimizer.step(closure)
        best = log_temperature.detach().exp()
        lowest, here, highest = (
            _mean_nll(predictives, labels, t) for t in (best.new_tensor(LOWEST), best, best.new_tensor(HIGHEST))
        )
    if here < min(lowest, highest) and LOWEST < best < HIGHEST:
        return best.item()
    bound = LOWEST if lowest < highest else HIGHEST
    rank_zero_warn(
        f"the temperature has no optimum between {LOWEST} and {HIGHEST} on {len(torch.cat(labels))} validation "
        f"questions (they are all answered right, or hardly better than by chance); {bound} is used"
    )
    return bound


def _mean_nll(predictives: list[Predictive], labels: list[Tensor], temperature: Tensor) -> Tensor:
    losses = [p.tempered(temperature).nll(y).cpu() for p, y in zip(predictives, labels, strict=True)]
    return torch.cat(losses).mean()
