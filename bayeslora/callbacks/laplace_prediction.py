"""How a Laplace posterior predicts: with the network linearised at its mean; every member of a mixture likewise."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import lightning as L
import torch
from torch import Tensor

from bayeslora.callbacks.laplace_network import member_network, network_of
from bayeslora.curvature.jacobian import contrast_mean
from bayeslora.curvature.link import Link, link
from bayeslora.lightning_modules.prediction_path import LogitsFn, Predict
from bayeslora.models.in_place import restored_weights, write_weights
from bayeslora.posteriors.mixture import Mixture
from bayeslora.types import GaussianPosterior, Posterior, Predictive


@dataclass(frozen=True)
class LaplacePrediction:
    """How it predicts, as plain values that a run can keep.

    Attributes:
        label: What the prediction path calls the method.
        link: From Gaussian logits to probabilities, see :func:`~bayeslora.curvature.link.link`.
        samples: Number of draws of the logits, for ``mc`` and for each component of a mixture.
        seed: Of the draws.
        temperatures: What the logits of each component are divided by.
    """

    label: str
    link: str
    samples: int
    seed: int
    temperatures: tuple[float, ...]

    def predictor(
        self,
        pl_module: L.LightningModule,
        posterior: Posterior,
        logits_fn: LogitsFn | None = None,
        label_fn: Callable[[Any], Tensor] | None = None,
    ) -> Predict:
        """Prediction with a posterior in place of a module's current weights.

        Args:
            pl_module: The module; its weights are the same afterwards.
            posterior: A Gaussian, or a mixture of them.
            logits_fn: For modules that are not of this package: ``(module, batch)`` to logits ``[B, C]``.
            label_fn: Likewise: batch to labels ``[B]``.
        """

        def component(gaussian: Posterior, temperature: float, combine: Link) -> Predict:
            """Prediction with one Gaussian."""
            assert isinstance(gaussian, GaussianPosterior)
            mean = gaussian.mean()
            names = list(getattr(gaussian, "precision", mean))

            def predict(batch: Any) -> Predictive:
                """The logits' Gaussian at its mean, of tempered logits, through the link."""
                with member_network(pl_module, 0):
                    network = network_of(pl_module, logits_fn, label_fn)
                    with restored_weights(network.parameters):
                        write_weights(network.parameters, mean)
                        logits, jacobian = network.jacobian(batch, names, torch.float32, None)
                mean_of_contrasts = contrast_mean(logits, jacobian, gaussian)
                return combine(mean_of_contrasts / temperature, gaussian.logit_covariance(jacobian) / temperature**2)

            return predict

        if not isinstance(posterior, Mixture):
            return component(posterior, self.temperatures[0], link(self.link, self.samples, self.seed))
        spread = link("mc", self.samples, self.seed)  # every member's Gaussian by as many draws
        each = [component(*pair, spread) for pair in zip(posterior.components, self.temperatures, strict=True)]

        def predict(batch: Any) -> Predictive:
            """The draws of all components' logits, as the members of one prediction."""
            logits = [one(batch).logits for one in each]
            return Predictive.from_logits(torch.cat([own for own in logits if own is not None]))

        return predict
