"""Datasets by name, as ``ood`` takes them: ``arc_easy``, ``mmlu:law``, ``synthetic:shifted``, ``jsonl:/path``."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module

from bayeslora.datamodules.source import Benchmark
from bayeslora.errors import UsageError


def _plain(module: str, attribute: str, *arguments: str) -> Callable[[str], Benchmark]:
    def make(_: str) -> Benchmark:
        return getattr(import_module(f"bayeslora.datamodules.{module}"), attribute)(*arguments)

    return make


# Name -> what makes the benchmark.
DATASETS: dict[str, Callable[[str], Benchmark]] = {
    "arc_easy": _plain("arc", "ARC", "ARC-Easy"),
    "arc_challenge": _plain("arc", "ARC", "ARC-Challenge"),
    "obqa": _plain("openbookqa", "OpenBookQA"),
    "csqa": _plain("commonsenseqa", "CommonsenseQA"),
    "winogrande_s": _plain("winogrande", "WinoGrande", "s"),
    "winogrande_m": _plain("winogrande", "WinoGrande", "m"),
    "boolq": _plain("boolq", "BoolQ"),
    "synthetic": _plain("synthetic", "Synthetic"),
}


def _jsonl(path: str) -> Benchmark:
    from bayeslora.datamodules.jsonl import JSONL

    return JSONL(path, whole=True)


def _synthetic(split: str) -> Benchmark:
    from bayeslora.datamodules.synthetic import Synthetic

    return Synthetic(split)


def _mmlu(subjects: str) -> Benchmark:
    from bayeslora.datamodules.mmlu import MMLU

    return MMLU(subjects.split("+"))


# Prefix -> what makes the benchmark from the part after the colon, and what that part may be.
FAMILIES: dict[str, tuple[Callable[[str], Benchmark], str]] = {
    "mmlu": (_mmlu, "subject or group, several with +"),
    "synthetic": (_synthetic, "shifted, ood, easy, noisy or hard"),
    "jsonl": (_jsonl, "path"),
}


def get_benchmark(name: str) -> Benchmark:
    """The benchmark of a name.

    Raises:
        UsageError: a name that is none of them.
    """
    family, colon, rest = name.partition(":")
    if colon and family in FAMILIES:
        return FAMILIES[family][0](rest)
    if name in DATASETS:
        return DATASETS[name](name)
    families = [f"{prefix}:<{what}>" for prefix, (_, what) in FAMILIES.items()]
    raise UsageError(f"dataset is {name!r}; allowed: {', '.join([*DATASETS, *families])}")
