"""A fitted curvature with all that is needed to choose a prior for it: again and again, without a model."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from bayeslora.errors import UsageError, require_choice
from bayeslora.posteriors.laplace.cells import chosen, grouped, names_of
from bayeslora.posteriors.laplace.curvature import Curvature, Groups
from bayeslora.posteriors.laplace.evidence import Evidence
from bayeslora.posteriors.laplace.selection import Choice, Validation, choose
from bayeslora.types import GaussianPosterior

PRIOR_MEANS = ("zero", "initial")


@dataclass(frozen=True)
class Prior:
    """What is asked of the prior.

    Attributes:
        precision: ``evidence`` (highest marginal likelihood), ``validation`` (least validation NLL), or a number.
        mean: Where the prior is centred: ``zero``, or the ``initial`` LoRA weights (B = 0 and the A that training began
            with), without which the size of A alone bounds the precision.
        groups: Which parameters have a precision of their own: ``one`` for all, by ``factor``, ``depth`` or ``cell``.
        sites: What is uncertain: ``all``, ``A``, ``B``, ``early``, ``late`` or ``last``; the others are known.
        scale: Factor on the covariance, or ``validation``.
        temperature: What logits are divided by at prediction, or ``validation``.
    """

    precision: float | str = "evidence"
    mean: str = "zero"
    groups: str = "one"
    sites: str = "all"
    scale: float | str = 1.0
    temperature: float | str = 1.0


@dataclass(frozen=True)
class Fit:
    """A curvature at the weights a run has found.

    Attributes:
        mean: The weights, name to value.
        initial: The weights that training began with; None where they are not known.
        cell_of: Parameter name to its cell.
        log_likelihood: Of the training labels.
        validation: The validation questions; None where there are none.
        curvature: Gives the curvature over groups of cells.
        figures: What the report says of the fit.
    """

    mean: Mapping[str, Tensor]
    initial: Mapping[str, Tensor] | None
    cell_of: Mapping[str, str]
    log_likelihood: float
    validation: Validation | None
    curvature: Callable[[Groups], Curvature]
    figures: dict[str, Any] = field(default_factory=dict)

    def choose(self, prior: Prior) -> tuple[GaussianPosterior, Choice, dict[str, Any]]:
        """The posterior under a prior that is chosen as asked.

        Returns:
            The posterior, what was chosen, and the figures of the report.

        Raises:
            UsageError: values that are not allowed, or a choice that cannot be made.
        """
        names = names_of(self.cell_of)
        groups = grouped(chosen(names, prior.sites), prior.groups)
        curvature = self.curvature(groups)
        centre = self._centre(prior.mean)
        squares = [
            sum((self.mean[name].double() - centre(name)).square().sum() for cell in cells for name in names[cell])
            for cells in groups.values()
        ]
        evidence = Evidence(
            self.log_likelihood, torch.tensor(squares, dtype=torch.float64, device="cpu"), curvature.log_det
        )
        choice = choose(curvature, evidence, self.validation, prior.precision, prior.scale, prior.temperature)
        posterior = curvature.posterior(choice.precisions, choice.scale)
        return posterior, choice, self._report(prior, groups, curvature, evidence, choice)

    def _centre(self, mean: str) -> Callable[[str], Tensor]:
        require_choice("Laplace's prior_mean", mean, PRIOR_MEANS)
        if mean == "zero":
            return lambda name: torch.zeros((), dtype=torch.float64, device="cpu")
        initial = self.initial
        if initial is None:
            raise UsageError("prior_mean is 'initial', but this adapter's initial weights are not known; use 'zero'")
        return lambda name: initial[name].double()

    def _report(
        self, prior: Prior, groups: Groups, curvature: Curvature, evidence: Evidence, choice: Choice
    ) -> dict[str, Any]:
        eigenvalues, precisions = curvature.eigenvalues(), choice.precisions
        positive = eigenvalues[eigenvalues > 0]
        return {
            **self.figures,
            "prior": asdict(prior),
            "groups": {name: list(cells) for name, cells in groups.items()},
            "precision": dict(zip(groups, precisions.tolist(), strict=True)),
            "gamma": dict(zip(groups, evidence.effective(precisions).tolist(), strict=True)),
            "squared_distance": dict(zip(groups, evidence.squares.tolist(), strict=True)),
            "scale": choice.scale,
            "temperature": choice.temperature,
            "log_likelihood": self.log_likelihood,
            "log_evidence": evidence(precisions).item(),
            "eigenvalues": [positive.min().item(), positive.max().item()] if len(positive) else [math.nan, math.nan],
            **choice.notes,
        }
