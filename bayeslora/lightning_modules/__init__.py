"""Methods that change training: one LightningModule a file."""

from bayeslora.lightning_modules.blob import BLoBModule
from bayeslora.lightning_modules.c_lora import CLoRAModule
from bayeslora.lightning_modules.ensemble import LoRAEnsemble
from bayeslora.lightning_modules.lora import LoRAModule
from bayeslora.lightning_modules.multiple_choice import MultipleChoiceModule

__all__ = ["BLoBModule", "CLoRAModule", "LoRAEnsemble", "LoRAModule", "MultipleChoiceModule"]
