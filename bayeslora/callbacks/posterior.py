"""Prediction with a posterior over weights, in place of a module's current weights."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn

from bayeslora.callbacks.attached import Attached
from bayeslora.callbacks.run_folder import RunFolder
from bayeslora.errors import UsageError
from bayeslora.lightning_modules.multiple_choice import MultipleChoiceModule
from bayeslora.lightning_modules.prediction_path import (
    LogitsFn,
    Predict,
    PredictionPath,
    checked_logits,
    prediction_path,
)
from bayeslora.lightning_modules.sample_bank import draw_bank, weight_samples
from bayeslora.models.foreign_dropout import dropout_draw, dropout_layers
from bayeslora.models.in_place import restored_weights, write_weights
from bayeslora.posteriors.mixture import Mixture, even_share
from bayeslora.posteriors.on_device import release
from bayeslora.posteriors.state import check_same_parameters, load_posterior
from bayeslora.streams import stream
from bayeslora.types import GaussianPosterior, Posterior, Predictive

PREDICT_WITH = ("samples", "linearised")


@dataclass(frozen=True)
class WeightPrediction:
    """How a posterior over weights predicts, as plain values that a run can keep.

    Attributes:
        label: What the prediction path calls the method; part of the name of the samples' stream of randomness.
        predict: ``samples`` or ``linearised``.
        draws: Number of weight samples.
        dropout: Whether every sample has a dropout draw of its own as well.
        seed: Of the samples.
    """

    label: str
    predict: str
    draws: int
    dropout: bool
    seed: int

    def predictor(
        self, pl_module: L.LightningModule, posterior: Posterior, logits_fn: LogitsFn | None = None
    ) -> Predict:
        """Prediction with a posterior in place of a module's current weights.

        Args:
            pl_module: The module; its weights are the same afterwards.
            posterior: What to predict with.
            logits_fn: For modules that are not of this package: ``(module, batch)`` to logits ``[B, C]``.
        """
        if self.predict == "linearised":
            return _linearised(pl_module, posterior, self.label)
        bank = draw_bank(posterior, self.draws, self.seed, self.label)
        return bank_predictor(pl_module, bank, logits_fn, stream(self.seed, "test") if self.dropout else None)


class PosteriorCallback(Attached, ABC):
    """Claims a module's prediction path for what ``posterior`` holds.

    One bank of S weight samples is drawn when an evaluation starts, from a generator of its own, and serves every
    batch: all questions see the same S functions. Modules of this package evaluate the bank in one fanned-out pass,
    others sample by sample, with their own weights put back bit for bit.

    Args:
        samples: Number S of weight samples.
        predict: ``samples``, or ``linearised``: Gaussian logits of the model linearised in its weights, without
            sampling. None leaves prediction to others.
        dropout: Give every sample a dropout draw of its own as well.
        seed: Seeds the samples; None takes the module's ``seed``, or 0.
        logits_fn: For modules that are not of this package: ``(module, batch)`` to logits ``[B, C]``.

    Raises:
        UsageError: options that are not allowed.
    """

    def __init__(
        self,
        samples: int = 10,
        predict: str | None = "samples",
        dropout: bool = False,
        seed: int | None = None,
        logits_fn: LogitsFn | None = None,
    ) -> None:
        if samples < 1:
            raise UsageError(f"samples is {samples}; allowed: 1 or more")
        if predict not in (None, *PREDICT_WITH):
            raise UsageError(f"predict is {predict!r}; allowed: {', '.join(PREDICT_WITH)}, or none")
        self.samples, self.predict, self.dropout, self.seed, self.logits_fn = samples, predict, dropout, seed, logits_fn
        self._path: PredictionPath | None = None
        self.served: tuple[Any, Posterior] | None = None  # how the evaluation that was last predicted, and with what

    @property
    @abstractmethod
    def posterior(self) -> Posterior | None:
        """The posterior as it stands, which a run folder saves; None where there is none yet."""

    @property
    def label(self) -> str:
        """What the prediction path and tables call the method."""
        return type(self).__name__

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Refuse two posteriors for one prediction, before either is computed.

        Raises:
            UsageError: another posterior callback of the trainer wants to predict too.
        """
        predicting = [c for c in trainer.callbacks if isinstance(c, PosteriorCallback) and c.predict is not None]  # type: ignore[attr-defined]
        if self in predicting and len(predicting) > 1:
            names = " and ".join(type(callback).__name__ for callback in predicting)
            raise UsageError(
                f"{names} both want to predict; allowed: one posterior callback a run. Give the others predict=None, "
                "or test them one after another"
            )

    def seed_of(self, pl_module: L.LightningModule) -> int:
        """The seed of the samples: this callback's, else the module's, else 0."""
        return getattr(pl_module, "seed", 0) if self.seed is None else self.seed

    def required_posterior(self) -> Posterior:
        """The posterior to predict with.

        Raises:
            UsageError: there is none.
        """
        posterior = self.posterior
        if posterior is None:
            raise UsageError(f"{self.label} has no posterior to predict with; fit first, or give a checkpoint of a fit")
        return posterior

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Say how what was fitted is kept, where no run folder keeps it."""
        kept = any(isinstance(callback, RunFolder) for callback in trainer.callbacks)  # type: ignore[attr-defined]
        if not (kept or trainer.fast_dev_run or self.posterior is None):  # type: ignore[attr-defined]
            rank_zero_info(
                f"{type(self).__name__}'s posterior is in memory; to keep it, give the trainer a RunFolder callback "
                "or call save_posterior(callback.posterior, FOLDER); SavedPosteriors([FOLDER]) predicts with it"
            )

    def on_test_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Draw the bank of samples and claim the prediction path.

        Raises:
            UsageError: no posterior, one of other names or shapes, or a module it cannot predict with this way.
        """
        self.served = None
        if self.predict is None:
            return
        own = weight_sets(pl_module)[0]
        posterior = self.required_posterior()
        check_same_parameters(posterior.mean(), own, f"{self.label}'s posterior")
        path = prediction_path(pl_module, self.logits_fn)
        path.claim(self.label, self._predictor(pl_module, posterior))
        self._path = path
        self.served = self.prediction(pl_module, posterior), posterior

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Leave the prediction path, with the bank of samples and what the device held of the posterior."""
        if self._path is not None:
            self._path.release(self.label)
            self._path = None
        if self.served is not None:
            release(self.served[1])

    on_predict_start, on_predict_end = on_test_start, on_test_end

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Leave the prediction path."""
        self.on_test_end(trainer, pl_module)

    def prediction(self, pl_module: L.LightningModule, posterior: Posterior) -> WeightPrediction:
        """How this callback predicts with a posterior, as plain values.

        Args:
            pl_module: The module that the trainer runs.
            posterior: The posterior.
        """
        assert self.predict is not None
        return WeightPrediction(self.label, self.predict, self._draws(posterior), self.dropout, self.seed_of(pl_module))

    def _predictor(self, pl_module: L.LightningModule, posterior: Posterior) -> Predict:
        return self.prediction(pl_module, posterior).predictor(pl_module, posterior, self.logits_fn)

    def _draws(self, posterior: Posterior) -> int:
        """How many samples to draw: S for every component of a mixture, or more, so that parts of it weigh the same."""
        share, components = even_share(posterior), getattr(posterior, "components", [posterior])
        return share * math.ceil(self.samples * len(components) / share)


class SavedPosteriors(PosteriorCallback):
    """Predicts with posteriors that finished runs left in their ``posterior/`` folders, as one mixture.

    Several SWAG runs make MultiSWAG, several plain runs an ensemble. Every component keeps its own S samples; M
    components give M * S members in their order, so that disagreement between runs counts in every uncertainty. Where a
    run left a mixture itself, as an ensemble does, S becomes the next multiple of its number of members.

    Args:
        posteriors: Folders that hold a ``posterior.json``.
        samples: Number S of weight samples of each component.
        dropout: Give every sample a dropout draw of its own as well.
        seed: Seeds the samples; None takes the module's ``seed``, or 0.
        logits_fn: For modules that are not of this package: ``(module, batch)`` to logits ``[B, C]``.
        name: What tables call the method; None for ``multi`` and the family, or ``ensemble`` of plain runs.

    Raises:
        UsageError: no folders, or options that are not allowed.

    Example:
        >>> from bayeslora import SavedPosteriors
        >>> multiswag = SavedPosteriors(["runs/first/posterior", "runs/second/posterior"], samples=10)
    """

    def __init__(
        self,
        posteriors: Sequence[str],
        samples: int = 10,
        dropout: bool = False,
        seed: int | None = None,
        logits_fn: LogitsFn | None = None,
        name: str | None = None,
    ) -> None:
        super().__init__(samples, "samples", dropout, seed, logits_fn)
        if not posteriors:
            raise UsageError("posteriors names no folders; give the posterior/ folders of one or more finished runs")
        self.folders, self.name = [Path(folder) for folder in posteriors], name
        self._mixture: Mixture | None = None

    @property
    def posterior(self) -> Posterior | None:
        """The mixture of the posteriors that were read."""
        return self._mixture

    @property
    def label(self) -> str:
        """What the prediction path and tables call the method."""
        if self.name is not None or self._mixture is None:
            return self.name or type(self).__name__
        families = {component.family for component in self._mixture.components}
        return "ensemble" if families == {"point"} else "multi" + "_".join(sorted(families))

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Refuse to train: the posteriors are those of finished runs.

        Raises:
            UsageError: the stage is ``fit``, or there is another posterior.
        """
        super().setup(trainer, pl_module, stage)
        if stage == "fit":
            raise UsageError("SavedPosteriors predicts with finished runs; allowed: test and predict, without fit")

    def on_test_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Read the posteriors, draw their samples and claim the prediction path.

        Raises:
            UsageError: a folder without a posterior, or one of another base, other names or shapes.
        """
        base = pl_module.model.base_fingerprint if isinstance(pl_module, MultipleChoiceModule) else None
        self._mixture = Mixture([load_posterior(folder, base) for folder in self.folders])
        super().on_test_start(trainer, pl_module)

    on_predict_start = on_test_start

    def _draws(self, posterior: Posterior) -> int:
        """S of every component, one of a plain run, whose samples are all the same."""
        points = isinstance(posterior, Mixture) and all(c.family == "point" for c in posterior.components)
        return len(self.folders) if points and not self.dropout else super()._draws(posterior)


def trainable_of(pl_module: L.LightningModule) -> dict[str, nn.Parameter]:
    """The trainable parameters: by plain names for modules of this package, else as ``named_parameters`` has them."""
    if isinstance(pl_module, MultipleChoiceModule):
        return pl_module.trainable()
    return {name: parameter for name, parameter in pl_module.named_parameters() if parameter.requires_grad}


def weight_sets(pl_module: L.LightningModule) -> list[dict[str, Tensor]]:
    """The networks that a module trains side by side: itself, or the members of a stack."""
    if isinstance(pl_module, MultipleChoiceModule):
        return pl_module.weight_sets()
    return [dict(trainable_of(pl_module))]


def active_members(pl_module: L.LightningModule) -> tuple[int, ...]:
    """Which of :func:`weight_sets` still train."""
    return pl_module.active_members() if isinstance(pl_module, MultipleChoiceModule) else (0,)


def usable_members(pl_module: L.LightningModule) -> tuple[int, ...]:
    """Which of :func:`weight_sets` have not failed."""
    return pl_module.usable_members() if isinstance(pl_module, MultipleChoiceModule) else (0,)


def bank_predictor(
    pl_module: L.LightningModule, bank: Mapping[str, Tensor], logits_fn: LogitsFn | None, noise: int | None = None
) -> Predict:
    """Prediction with S sets of weights, equally weighted, which are not the module's own.

    Args:
        pl_module: The module; its weights are the same afterwards.
        bank: Parameter name to ``[S, *shape]``.
        logits_fn: For modules that are not of this package: ``(module, batch)`` to logits ``[B, C]``.
        noise: Seeds a dropout draw for every sample; None for no dropout.

    Raises:
        UsageError: dropout draws for a module that has no dropout, or for parameters beside LoRA's of a module of this
            package.
    """
    if isinstance(pl_module, MultipleChoiceModule) and bank.keys() <= _site_parameters(pl_module):
        if noise is not None and not pl_module.model.has_noise:
            raise UsageError("dropout is true, but the adapter has none to draw; give lora.dropout, or dropout false")
        samples = weight_samples(bank, pl_module.trainable(), noise)
        return lambda batch: pl_module.sampled(batch, samples)
    if noise is not None and isinstance(pl_module, MultipleChoiceModule):
        raise UsageError("dropout draws are of LoRA sites alone, but other parameters are sampled too; freeze those")
    return _one_by_one(pl_module, bank, logits_fn or _current_logits, noise)


def _current_logits(pl_module: Any, batch: Any) -> Tensor:
    return pl_module.answer_logits(batch)[0]


def _site_parameters(module: MultipleChoiceModule) -> set[str]:
    return {f"{site}.{kind}" for site in module.model.sites for kind in ("weight", "bias")}


def _one_by_one(
    pl_module: L.LightningModule, bank: Mapping[str, Tensor], logits_fn: LogitsFn, noise: int | None = None
) -> Predict:
    """Copy every sample into the parameters in turn, and the module's own weights back."""
    parameters = trainable_of(pl_module)
    count = len(next(iter(bank.values())))
    layers = [] if noise is None else dropout_layers(pl_module)

    def predict(batch: Any) -> Predictive:
        """The logits of every sample, as members ``[S, B, C]``."""
        logits = []
        with restored_weights(parameters):
            for index in range(count):
                write_weights(parameters, {name: draws[index] for name, draws in bank.items()})
                with dropout_draw(layers, stream(noise or 0, index), pl_module.device):
                    logits.append(checked_logits(pl_module, logits_fn, batch).float())
        return Predictive.from_logits(torch.stack(logits))

    return predict


def _linearised(pl_module: L.LightningModule, posterior: Posterior, label: str) -> Predict:
    if not isinstance(posterior, GaussianPosterior):
        raise UsageError(f"{label}'s posterior ({posterior.family}) is no Gaussian; allowed: predict samples")
    if not isinstance(pl_module, MultipleChoiceModule):
        raise UsageError(f"linearised prediction needs a module of this package, not {type(pl_module).__name__}")
    from bayeslora.curvature.jacobian import linearised_predictive

    model = pl_module.model
    own = model.trainable()
    mean = {name: value.to(own[name].device) for name, value in posterior.mean().items()}

    def predict(batch: Any) -> Predictive:
        """The Gaussian of the logits, linearised at the posterior's mean."""
        parameters = model.trainable()
        with restored_weights(parameters):
            write_weights(parameters, mean)
            return linearised_predictive(model, batch, posterior)

    return predict
