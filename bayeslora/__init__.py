"""Bayesian LoRA fine-tuning of language models with PyTorch Lightning."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bayeslora.callbacks.decision import Decision as Decision
    from bayeslora.callbacks.dynamics import Dynamics as Dynamics
    from bayeslora.callbacks.laplace import Laplace as Laplace
    from bayeslora.callbacks.posterior import SavedPosteriors as SavedPosteriors
    from bayeslora.callbacks.predictions import Predictions as Predictions
    from bayeslora.callbacks.report import Report as Report
    from bayeslora.callbacks.run_folder import RunFolder as RunFolder
    from bayeslora.callbacks.schedule import Schedule as Schedule
    from bayeslora.callbacks.swag import SWAG as SWAG
    from bayeslora.callbacks.temperature import Temperature as Temperature
    from bayeslora.callbacks.tfb import TFB as TFB
    from bayeslora.datamodules.arc import ARCDataModule as ARCDataModule
    from bayeslora.datamodules.boolq import BoolQDataModule as BoolQDataModule
    from bayeslora.datamodules.commonsenseqa import CommonsenseQADataModule as CommonsenseQADataModule
    from bayeslora.datamodules.jsonl import JSONLDataModule as JSONLDataModule
    from bayeslora.datamodules.mmlu import MMLUDataModule as MMLUDataModule
    from bayeslora.datamodules.multiple_choice import MultipleChoiceDataModule as MultipleChoiceDataModule
    from bayeslora.datamodules.openbookqa import OpenBookQADataModule as OpenBookQADataModule
    from bayeslora.datamodules.question import Question as Question
    from bayeslora.datamodules.synthetic import SyntheticDataModule as SyntheticDataModule
    from bayeslora.datamodules.winogrande import WinoGrandeDataModule as WinoGrandeDataModule
    from bayeslora.decisions.rule import DecisionRule as DecisionRule
    from bayeslora.errors import RunError as RunError
    from bayeslora.errors import UsageError as UsageError
    from bayeslora.lightning_modules.blob import BLoBModule as BLoBModule
    from bayeslora.lightning_modules.c_lora import CLoRAModule as CLoRAModule
    from bayeslora.lightning_modules.ensemble import LoRAEnsemble as LoRAEnsemble
    from bayeslora.lightning_modules.ivon import IVONModule as IVONModule
    from bayeslora.lightning_modules.lora import LoRAModule as LoRAModule
    from bayeslora.lightning_modules.optimisation import Optimisation as Optimisation
    from bayeslora.lightning_modules.scalabl import ScalaBLModule as ScalaBLModule
    from bayeslora.models.loading import Backbone as Backbone
    from bayeslora.models.loading import LoRA as LoRA
    from bayeslora.posteriors.state import load_posterior as load_posterior
    from bayeslora.posteriors.state import save_posterior as save_posterior
    from bayeslora.serving.answer import Answer as Answer
    from bayeslora.serving.keep import KeepForServing as KeepForServing
    from bayeslora.serving.predictor import Predictor as Predictor
    from bayeslora.types import AnswerBatch as AnswerBatch
    from bayeslora.types import Predictive as Predictive
    from bayeslora.types import Samples as Samples

__version__ = "0.1.0"

# Public name to module: imported when first asked for, so that `bayeslora --help` does not wait for torch.
_PUBLIC = {
    "ARCDataModule": "bayeslora.datamodules",
    "Answer": "bayeslora.serving.answer",
    "AnswerBatch": "bayeslora.types",
    "BLoBModule": "bayeslora.lightning_modules.blob",
    "Backbone": "bayeslora.models.loading",
    "BoolQDataModule": "bayeslora.datamodules",
    "CLoRAModule": "bayeslora.lightning_modules.c_lora",
    "CommonsenseQADataModule": "bayeslora.datamodules",
    "Decision": "bayeslora.callbacks.decision",
    "DecisionRule": "bayeslora.decisions.rule",
    "Dynamics": "bayeslora.callbacks.dynamics",
    "IVONModule": "bayeslora.lightning_modules.ivon",
    "JSONLDataModule": "bayeslora.datamodules",
    "KeepForServing": "bayeslora.serving.keep",
    "Laplace": "bayeslora.callbacks.laplace",
    "LoRA": "bayeslora.models.loading",
    "LoRAEnsemble": "bayeslora.lightning_modules.ensemble",
    "LoRAModule": "bayeslora.lightning_modules.lora",
    "MMLUDataModule": "bayeslora.datamodules",
    "MultipleChoiceDataModule": "bayeslora.datamodules",
    "OpenBookQADataModule": "bayeslora.datamodules",
    "Optimisation": "bayeslora.lightning_modules.optimisation",
    "Predictions": "bayeslora.callbacks.predictions",
    "Predictive": "bayeslora.types",
    "Predictor": "bayeslora.serving.predictor",
    "Question": "bayeslora.datamodules",
    "Report": "bayeslora.callbacks.report",
    "RunFolder": "bayeslora.callbacks.run_folder",
    "RunError": "bayeslora.errors",
    "SWAG": "bayeslora.callbacks.swag",
    "Samples": "bayeslora.types",
    "SavedPosteriors": "bayeslora.callbacks.posterior",
    "ScalaBLModule": "bayeslora.lightning_modules.scalabl",
    "Schedule": "bayeslora.callbacks.schedule",
    "SyntheticDataModule": "bayeslora.datamodules",
    "TFB": "bayeslora.callbacks.tfb",
    "Temperature": "bayeslora.callbacks.temperature",
    "UsageError": "bayeslora.errors",
    "WinoGrandeDataModule": "bayeslora.datamodules",
    "load_posterior": "bayeslora.posteriors.state",
    "save_posterior": "bayeslora.posteriors.state",
}
__all__ = sorted(_PUBLIC)


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_PUBLIC])
