"""Benchmarks as LightningDataModules, imported when asked for."""

from importlib import import_module
from typing import Any

_MODULES = {
    "ARCDataModule": "arc",
    "BoolQDataModule": "boolq",
    "CommonsenseQADataModule": "commonsenseqa",
    "JSONLDataModule": "jsonl",
    "MMLUDataModule": "mmlu",
    "MultipleChoiceDataModule": "multiple_choice",
    "OpenBookQADataModule": "openbookqa",
    "Question": "question",
    "SyntheticDataModule": "synthetic",
    "WinoGrandeDataModule": "winogrande",
}
__all__ = list(_MODULES)


def __getattr__(name: str) -> Any:
    """Import the module of a public name at its first use."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
