"""Benchmarks as LightningDataModules. Importing the package enters every benchmark's names in the registry."""

from bayeslora.datamodules.arc import ARCDataModule
from bayeslora.datamodules.boolq import BoolQDataModule
from bayeslora.datamodules.commonsenseqa import CommonsenseQADataModule
from bayeslora.datamodules.jsonl import JSONLDataModule
from bayeslora.datamodules.mmlu import MMLUDataModule
from bayeslora.datamodules.multiple_choice import MultipleChoiceDataModule
from bayeslora.datamodules.openbookqa import OpenBookQADataModule
from bayeslora.datamodules.question import Question
from bayeslora.datamodules.synthetic import SyntheticDataModule
from bayeslora.datamodules.winogrande import WinoGrandeDataModule

__all__ = [
    "ARCDataModule",
    "BoolQDataModule",
    "CommonsenseQADataModule",
    "JSONLDataModule",
    "MMLUDataModule",
    "MultipleChoiceDataModule",
    "OpenBookQADataModule",
    "Question",
    "SyntheticDataModule",
    "WinoGrandeDataModule",
]
