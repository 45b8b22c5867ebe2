"""What methods share that leave a Gaussian over weights: prediction with its draws, linearised, or by its mean."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

from bayeslora.curvature.jacobian import linearised_predictive
from bayeslora.errors import UsageError, require, require_choice
from bayeslora.lightning_modules.multiple_choice import MultipleChoiceModule
from bayeslora.lightning_modules.sample_bank import draw_bank, weight_samples
from bayeslora.models.hub import adapter_folder
from bayeslora.models.loading import Backbone, LoRA
from bayeslora.posteriors.state import load_posterior
from bayeslora.types import AnswerBatch, GaussianPosterior, Posterior, Predictive, Samples


class GaussianModule(MultipleChoiceModule, ABC):
    """Predicts with the Gaussian that :meth:`posterior` gives: what methods that learn one while they train build on.

    A subclass gives ``posterior`` and, where a finished run's folder is to bring its Gaussian back, ``take_posterior``.

    Args:
        backbone: The frozen base model; ``adapter`` may be the ``posterior/`` folder of a run of the same method.
        lora: The low-rank update.
        samples: Number S of samples to predict with; 0 predicts with the mean.
        predict: ``weights``: one bank of S networks for a whole evaluation. ``linearised``: Gaussian in the logits,
            from the model linearised in its weights; nothing is drawn.
        common: ``optimisation``, ``support``, ``chunk`` and ``seed``, as for :class:`MultipleChoiceModule`.

    Raises:
        UsageError: a number of samples below 0, or a way to predict that there is not.
    """

    predictions: tuple[str, ...] = ("weights", "linearised")

    def __init__(
        self,
        backbone: Backbone | None = None,
        lora: LoRA | None = None,
        *,
        samples: int = 10,
        predict: str = "weights",
        **common: Any,
    ) -> None:
        super().__init__(backbone, lora, **common)
        require("samples", samples, samples >= 0, "0 (the mean) or more")
        require_choice("predict", predict, self.predictions)
        self.samples, self.predict = samples, predict
        self._law: GaussianPosterior | None = None  # of the linearised evaluation that runs

    @abstractmethod
    def posterior(self) -> GaussianPosterior:
        """The Gaussian as it stands."""

    def take_posterior(self, posterior: Posterior, folder: Path) -> None:
        """Start from a Gaussian that a run has left beside its adapter, where it is this method's.

        Args:
            posterior: What was found; of any family.
            folder: Where, for messages.

        Raises:
            UsageError: it is this method's, but does not fit.
        """

    def configure_model(self) -> None:
        """Load the base, put LoRA on it, and start from the Gaussian beside ``backbone.adapter``, if there is one."""
        if self.model is not None:
            return
        super().configure_model()
        self.add_parameters()
        if self.backbone.adapter is None:
            return
        folder = adapter_folder(self.backbone.adapter)
        if (folder / "posterior.json").exists():
            self.take_posterior(load_posterior(folder, self.model.base_fingerprint), folder)

    def add_parameters(self) -> None:
        """Put on the sites what this method trains beside LoRA."""

    # --- prediction ----------------------------------------------------------------------------------------------

    @property
    def short_name(self) -> str:
        """What tables call this method, whatever it predicts with."""
        return _kind(self)

    @property
    def method(self) -> str:
        """What a table calls this method, its short name, and what it predicts with."""
        if self.samples == 0:
            return f"{self.short_name}_mean"
        return f"{self.short_name}_{self.samples if self.predict != 'linearised' else self.predict}"

    def on_test_start(self) -> None:
        """Draw the bank of this evaluation.

        Raises:
            UsageError: an adapter that has no standard deviations, and none were trained.
        """
        if self.samples and self.backbone.adapter and not self._learned:
            raise UsageError(
                f"backbone.adapter {self.backbone.adapter} has no standard deviations to sample with; give samples 0, "
                f"a checkpoint, or the posterior/ folder of a {type(self).__name__.removesuffix('Module')} run"
            )
        super().on_test_start()
        self._law = self.posterior() if self.predict == "linearised" and self.samples else None

    def on_test_end(self) -> None:
        """Let go of the bank, or of the law that was linearised with."""
        super().on_test_end()
        self._law = None

    def test_samples(self) -> Samples | None:
        """``samples`` networks as one bank of the weights that have a law; None where nothing is drawn."""
        if self.samples == 0 or self.predict == "linearised":
            return None
        draws = draw_bank(self.posterior(), self.samples, self.seed, _kind(self))
        return weight_samples({name: draws[name] for name in self.random_weights()}, self.trainable())

    def random_weights(self) -> list[str]:
        """Names of the weights that have a law; the others are points."""
        return list(self.posterior().mean())

    def predictive(self, batch: AnswerBatch) -> Predictive:
        """The mean, or S samples, or the law of the logits of the linearised model."""
        if self.predict == "linearised" and self.samples:
            return linearised_predictive(self.model, batch, self._law or self.posterior())
        return super().predictive(batch)


def _kind(module: GaussianModule) -> str:
    return type(module).__name__.removesuffix("Module").lower()
