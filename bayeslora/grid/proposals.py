"""Trials proposed by Optuna: each a pure function of the space, its number and what earlier batches have found."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bayeslora.errors import UsageError
from bayeslora.grid.space import Range, Space, Value


@dataclass(frozen=True)
class Trial:
    """One point of a space, and what it was worth.

    Attributes:
        number: From 0, the configuration as it is.
        parameters: By the name of an option; for number 0 what the configuration says.
        nll: Mean validation NLL over the seeds in nats; None where it has not run, or has failed.
        failed: Why it has failed.
    """

    number: int
    parameters: Mapping[str, Value]
    nll: float | None = None
    failed: str | None = None


def optuna_version() -> str:
    """The version of Optuna, on which the trials of a seed depend.

    Raises:
        UsageError: it is not installed.
    """
    try:
        import optuna
    except ImportError:
        raise UsageError("bayeslora tune needs Optuna, which is not installed; pip install 'bayeslora[tune]'") from None
    return str(optuna.__version__)


def propose(space: Space, told: Sequence[Trial], count: int) -> list[Trial]:
    """The next trials after those that are known, proposed one after another without their results.

    A grid's are its combinations but for the configuration as it is, which is trial 0; when they are used up there are
    fewer than ``count``, or none.

    A new study and a new sampler propose each trial: nothing that a sampler keeps to itself, which a process that was
    killed would have lost, has a say. Trials of the same batch that came before are in the study as running.

    Args:
        space: What is searched.
        told: All trials of the batches before.
        count: How many to propose.
    """
    numbers = range(len(told), len(told) + count)
    if space.sampler == "grid":
        left = _combinations(space, told[0])[len(told) - 1 :]
        return [Trial(number, point) for number, point in zip(numbers, left, strict=False)]
    found: list[Trial] = []
    for number in numbers:
        found.append(Trial(number, _point(space, number, told, found)))
    return found


def _combinations(space: Space, first: Trial) -> list[dict[str, Value]]:
    """The points of a grid in their order, without the first trial's."""
    values = [domain for domain in space.parameters.values() if not isinstance(domain, Range)]
    points = [dict(zip(space.parameters, point, strict=True)) for point in itertools.product(*values)]
    return [point for point in points if point != dict(first.parameters)]


def _point(space: Space, number: int, told: Sequence[Trial], running: Sequence[Trial]) -> dict[str, Value]:
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    samplers: dict[str, Any] = {"tpe": optuna.samplers.TPESampler, "random": optuna.samplers.RandomSampler}
    study = optuna.create_study(sampler=samplers[space.sampler](seed=space.seed + number))
    domains = {name: _distribution(optuna, domain) for name, domain in space.parameters.items()}
    states = optuna.trial.TrialState
    for trial in (*told, *running):
        if not inside(space, trial.parameters):
            continue  # the configuration as it is may lie elsewhere
        state = states.COMPLETE if trial.nll is not None else states.FAIL if trial.failed else states.RUNNING
        own: dict[str, Any] = {"params": dict(trial.parameters), "distributions": domains, "value": trial.nll}
        study.add_trial(optuna.trial.create_trial(state=state, **own))
    return dict(study.ask(domains).params)


def inside(space: Space, parameters: Mapping[str, Any]) -> bool:
    """Whether values are a point of a space.

    Args:
        space: The space.
        parameters: By the name of an option.
    """
    return all(parameters.get(name) in domain for name, domain in space.parameters.items())


def _distribution(optuna: Any, domain: Range | tuple[Value, ...]) -> Any:
    kinds = optuna.distributions
    if not isinstance(domain, Range):
        return kinds.CategoricalDistribution(domain)
    if domain.whole:
        return kinds.IntDistribution(domain.low, domain.high, log=domain.log, step=int(domain.step or 1))
    return kinds.FloatDistribution(domain.low, domain.high, log=domain.log, step=domain.step)
