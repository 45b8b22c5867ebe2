"""The space of a tuning: its parameters, how many trials, in which batches, and how they are proposed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from bayeslora.errors import UsageError, require, require_choice
from bayeslora.grid.specification import read_mapping

SAMPLERS = ("tpe", "random", "grid")
_KEYS = ("sampler", "trials", "batch", "seeds", "seed", "threads", "parameters")
_RANGE_KEYS = ("low", "high", "log", "step")
_OWN = ("seed_everything", "trainer.default_root_dir")  # of every trial
Value = bool | int | float | str


@dataclass(frozen=True)
class Range:
    """Numbers from ``low`` to ``high``.

    Attributes:
        low: The least.
        high: The greatest.
        log: Whether they are drawn evenly in their logarithm.
        step: Between two of them; None for all.
    """

    low: int | float
    high: int | float
    log: bool = False
    step: int | float | None = None

    @property
    def whole(self) -> bool:
        """Whether they are whole numbers."""
        return isinstance(self.low, int) and isinstance(self.high, int)

    def __getitem__(self, place: int) -> int | float:
        return (self.low, self.high)[place]

    def __contains__(self, value: object) -> bool:
        if isinstance(value, bool) or not isinstance(value, int | float) or not self.low <= value <= self.high:
            return False
        steps = 0.0 if self.step is None else (value - self.low) / self.step
        return (not self.whole or float(value).is_integer()) and abs(steps - round(steps)) < 1e-9


@dataclass(frozen=True)
class Space:
    """What a tuning searches, and how.

    Attributes:
        parameters: By the name of an option, such as ``model.init_args.lora.r``: a range, or the values to choose from.
        sampler: ``tpe``, ``random`` or ``grid``.
        trials: How many, the configuration as it is among them.
        batch: How many trials are proposed at once, by the results of the batches before.
        seeds: The seeds of every trial.
        seed: Of the proposals; trial n has ``seed + n``.
        threads: CPU threads of a run.
    """

    parameters: Mapping[str, Range | tuple[Value, ...]]
    sampler: str
    trials: int
    batch: int
    seeds: tuple[int, ...]
    seed: int
    threads: int


def read_space(file: Path) -> Space:
    """The space that a YAML file describes.

    Args:
        file: Its keys are those of :class:`Space`. A parameter is a list of values, or a mapping with ``low`` and
            ``high`` and, where wanted, ``log: true`` or ``step``; whole numbers where both ends are.

    Raises:
        UsageError: a key that is not known, a range without numbers, no parameters, or numbers below 1.
    """
    content = read_mapping(file, "the space", _KEYS)
    given: Any = content.get("parameters")
    require(f"{file}: parameters", given, isinstance(given, dict) and bool(given), "options with their ranges or lists")
    own = next((name for name in given if name in _OWN), None)
    if own is not None:
        raise UsageError(
            f"{file}: {own} is no parameter, since every trial is given its own; leave it out, see `seeds`"
        )
    parameters = {str(name): _domain(file, str(name), value) for name, value in given.items()}
    sampler = content.get("sampler", "tpe")
    require_choice(f"{file}: sampler", sampler, SAMPLERS)
    seeds = content.get("seeds", [0])
    whole = isinstance(seeds, list) and bool(seeds) and all(type(seed) is int and seed >= 0 for seed in seeds)
    require(f"{file}: seeds", seeds, whole and len({*seeds}) == len(seeds), "different whole numbers from 0 on")
    numbers = {"trials": _points(file, parameters) if sampler == "grid" else 20, "batch": 4, "seed": 0, "threads": 1}
    for name, default in numbers.items():
        numbers[name] = content.get(name, default)
        least = 0 if name == "seed" else 1
        holds = type(numbers[name]) is int and numbers[name] >= least
        require(f"{file}: {name}", numbers[name], holds, f"a whole number from {least} on")
    return Space(parameters, sampler, seeds=tuple(seeds), **numbers)


def _points(file: Path, parameters: Mapping[str, Range | tuple[Value, ...]]) -> int:
    """The trials of a grid: all combinations, and the configuration as it is."""
    for name, domain in parameters.items():
        if isinstance(domain, Range):
            raise UsageError(f"{file}: {name} is a range; allowed for the sampler grid: a list of values")
    return 1 + prod(len(domain) for domain in parameters.values() if not isinstance(domain, Range))


def _domain(file: Path, name: str, given: Any) -> Range | tuple[Value, ...]:
    what = f"{file}: {name}"
    if isinstance(given, list):
        plain = bool(given) and all(isinstance(value, bool | int | float | str) for value in given)
        require(what, given, plain and len({*map(repr, given)}) == len(given), "different numbers, words or booleans")
        return tuple(given)
    require(what, given, isinstance(given, dict), "a list of values, or a mapping with low and high")
    for key in given:
        require_choice(f"{what}: key", key, _RANGE_KEYS)
    low, high, log, step = (given.get(key) for key in _RANGE_KEYS)
    numbers = all(isinstance(end, int | float) and not isinstance(end, bool) for end in (low, high))
    require(what, given, numbers and low < high, "numbers with low below high, such as {low: 1.0e-5, high: 1.0e-3}")
    require(f"{what}: log", log, log in (None, False) or (log is True and low > 0 and step is None), "true for low > 0")
    require(f"{what}: step", step, step is None or (isinstance(step, int | float) and step > 0), "a number above 0")
    return Range(low, high, bool(log), step)
