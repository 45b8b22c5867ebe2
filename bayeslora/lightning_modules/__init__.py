"""Methods that change training: one LightningModule a file."""

from bayeslora.lightning_modules.lora import LoRAModule
from bayeslora.lightning_modules.multiple_choice import MultipleChoiceModule

__all__ = ["LoRAModule", "MultipleChoiceModule"]
