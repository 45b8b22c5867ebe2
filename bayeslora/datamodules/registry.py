"""Datasets by name, as ``ood`` takes them: ``arc_easy``, ``mmlu:law``, ``synthetic:shifted``, ``jsonl:/path``.

Every benchmark's file enters its own names here when it is imported, and the package imports them all.
"""

from __future__ import annotations

from collections.abc import Callable

from bayeslora.datamodules.source import Benchmark
from bayeslora.errors import UsageError

_DATASETS: dict[str, Callable[[], Benchmark]] = {}
_FAMILIES: dict[str, tuple[Callable[[str], Benchmark], str]] = {}


def register(name: str, make: Callable[[], Benchmark]) -> None:
    """Let ``ood`` and :func:`get_benchmark` take a benchmark by its name.

    Args:
        name: The name, for example ``arc_easy``.
        make: Makes the benchmark.
    """
    _DATASETS[name] = make


def register_family(prefix: str, make: Callable[[str], Benchmark], rest: str) -> None:
    """Let ``ood`` and :func:`get_benchmark` take names of the form ``prefix:rest``.

    Args:
        prefix: What stands before the colon, for example ``mmlu``.
        make: Makes the benchmark from what stands after the colon.
        rest: What may stand after the colon, in words, for error messages.
    """
    _FAMILIES[prefix] = make, rest


def get_benchmark(name: str) -> Benchmark:
    """The benchmark of a name.

    Args:
        name: A name such as ``arc_easy``, or a family and what it takes, such as ``mmlu:law``.

    Raises:
        UsageError: a name that is none of them.
    """
    family, colon, rest = name.partition(":")
    if colon and family in _FAMILIES:
        return _FAMILIES[family][0](rest)
    if name in _DATASETS:
        return _DATASETS[name]()
    families = [f"{prefix}:<{what}>" for prefix, (_, what) in _FAMILIES.items()]
    raise UsageError(f"dataset is {name!r}; allowed: {', '.join([*_DATASETS, *families])}")
