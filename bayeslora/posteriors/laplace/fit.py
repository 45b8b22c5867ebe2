"""A fitted curvature with all that is needed to choose a prior for it: again and again, without a model."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from bayeslora.errors import UsageError, require_choice
from bayeslora.posteriors.laplace.cells import chosen, group_cells, names_of
from bayeslora.posteriors.laplace.curvature import Curvature, Groups
from bayeslora.posteriors.laplace.evidence import Evidence
from bayeslora.posteriors.laplace.full import FullPosterior
from bayeslora.posteriors.laplace.refitted import RefittedEvidence, RefittedSpace
from bayeslora.posteriors.laplace.selection import Choice, Validation, choose
from bayeslora.types import GaussianPosterior

CENTRES = ("zero", "initial", "trained")
MEANS = ("trained", "refit")
NEEDS_ROWS = "needs the Jacobian's rows of every training question, which structure='full' keeps and blocks do not"


@dataclass(frozen=True)
class Prior:
    """What is asked of the prior, and of the Gaussian that follows from it.

    Attributes:
        precision: ``evidence`` (highest marginal likelihood), ``validation`` (least validation NLL), or a number.
        mean: Where the prior is centred: ``zero``; the ``initial`` LoRA weights (B = 0 and the A that training began
            with), without which the size of A alone bounds the precision; or the ``trained`` weights.
        groups: Which parameters have a precision of their own: ``one`` for all, by ``factor``, ``depth`` or ``cell``.
        subset_of_weights: What is uncertain: ``all``, ``A``, ``B``, ``early``, ``late`` or ``last``; the others are
            known.
        scale: Factor on the covariance, or ``validation``.
        temperature: What logits are divided by at prediction, or ``validation``.
        posterior_mean: Where the Gaussian is centred: at the ``trained`` weights, or by a ``refit`` at the optimum that
            the network linearised there has under this prior.
    """

    precision: float | str = "evidence"
    mean: str = "zero"
    groups: str = "one"
    subset_of_weights: str = "all"
    scale: float | str = 1.0
    temperature: float | str = 1.0
    posterior_mean: str = "trained"


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
        refitted: Gives the curvature over groups of cells, for a prior's centre and the weights' distance from it, at
            the optimum of the linearised network; None where the structure does not keep what that needs.
    """

    mean: Mapping[str, Tensor]
    initial: Mapping[str, Tensor] | None
    cell_of: Mapping[str, str]
    log_likelihood: float
    validation: Validation | None
    curvature: Callable[[Groups], Curvature]
    figures: dict[str, Any] = field(default_factory=dict)
    refitted: Callable[[Groups, str, Mapping[str, Tensor]], RefittedSpace] | None = None

    def choose(self, prior: Prior) -> tuple[GaussianPosterior, Choice, dict[str, Any]]:
        """The posterior under a prior that is chosen as asked.

        Returns:
            The posterior, what was chosen, and the figures of the report.

        Raises:
            UsageError: values that are not allowed, or a choice that cannot be made.
            RunError: the linearised network was not refitted.
        """
        names = names_of(self.cell_of)
        groups = group_cells(chosen(names, prior.subset_of_weights), prior.groups)
        distance = distances(self.mean, self.initial, prior.mean)
        require_choice("Laplace's mean", prior.posterior_mean, MEANS)
        if prior.posterior_mean == "refit":
            return self._refit(prior, groups, distance)
        curvature = self.curvature(groups)
        squares = [
            sum(distance[name].square().sum() for cell in cells for name in names[cell]) for cells in groups.values()
        ]
        evidence = Evidence(
            self.log_likelihood, torch.tensor(squares, dtype=torch.float64, device="cpu"), curvature.log_det
        )
        choice = choose(curvature, evidence, self.validation, prior.precision, prior.scale, prior.temperature)
        posterior = curvature.posterior(choice.precisions, choice.scale)
        return posterior, choice, self._report(prior, groups, curvature, evidence, choice, posterior)

    def _refit(
        self, prior: Prior, groups: Groups, distance: Mapping[str, Tensor]
    ) -> tuple[GaussianPosterior, Choice, dict[str, Any]]:
        """:meth:`choose` around the optimum of the linearised network."""
        if self.refitted is None:
            raise UsageError(f"mean='refit' {NEEDS_ROWS}; give structure='full' or mean='trained'")
        space = self.refitted(groups, prior.mean, distance)
        evidence = RefittedEvidence(space)
        choice = choose(space, evidence, self.validation, prior.precision, prior.scale, prior.temperature)
        posterior = space.posterior(choice.precisions, choice.scale)
        mode = space.model.mode(choice.precisions)
        shift = posterior.shift or {}
        moved = sum(value.double().square().sum().item() for value in shift.values())
        here = space.at(choice.precisions), evidence.at(choice.precisions)
        report = self._report(prior, groups, *here, choice, posterior)
        refit = {"gradient_norm": mode.gradient_norm, "steps": mode.steps, "moved": moved**0.5}
        return posterior, choice, {**report, "refit": refit, "log_likelihood_trained": self.log_likelihood}

    def _report(
        self,
        prior: Prior,
        groups: Groups,
        curvature: Curvature,
        evidence: Evidence,
        choice: Choice,
        posterior: GaussianPosterior,
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
            "log_likelihood": evidence.log_likelihood,
            "log_evidence": evidence(precisions).item(),
            "eigenvalues": [positive.min().item(), positive.max().item()] if len(positive) else [math.nan, math.nan],
            **({"rounding": posterior.rounding} if isinstance(posterior, FullPosterior) else {}),
            **choice.notes,
        }


def distances(mean: Mapping[str, Tensor], initial: Mapping[str, Tensor] | None, centre: str) -> dict[str, Tensor]:
    """The weights less the prior's centre, parameter name to a float64 value.

    Args:
        mean: The trained weights, by parameter name.
        initial: The weights that training began with; None where they are not known.
        centre: Where the prior is centred: ``zero``, ``initial`` or ``trained``.

    Raises:
        UsageError: an unknown centre, or initial weights that are not known.
    """
    require_choice("Laplace's prior_mean", centre, CENTRES)
    if centre == "initial" and initial is None:
        raise UsageError("prior_mean is 'initial', but this adapter's initial weights are not known; use 'zero'")
    if centre == "trained":
        return {name: torch.zeros_like(value, dtype=torch.float64) for name, value in mean.items()}
    away = initial if centre == "initial" and initial is not None else {}
    return {name: value.double() - (away[name].double() if name in away else 0.0) for name, value in mean.items()}
