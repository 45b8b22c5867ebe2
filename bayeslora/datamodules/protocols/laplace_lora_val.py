"""Laplace-LoRA (Yang et al., 2024), in its setting with a validation set."""

from __future__ import annotations

from bayeslora.datamodules.protocols.base import Splits
from bayeslora.datamodules.protocols.laplace_lora import LaplaceLoRA
from bayeslora.datamodules.source import Benchmark


class LaplaceLoRAVal(LaplaceLoRA):
    """As ``laplace_lora``, with the last fifth of the training questions, in their order, to validate on."""

    name = "laplace_lora_val"

    def splits(self, benchmark: Benchmark) -> Splits:
        """The end of the training split to validate on, the hub's validation split to test on; MMLU's test split."""
        if benchmark.task == "mmlu":
            return super().splits(benchmark)
        return Splits(benchmark.training, None, "validation", in_order=True)
