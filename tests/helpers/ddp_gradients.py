"""The gradients of a run's steps, on one process or on several."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import lightning as L
import torch

from bayeslora import Backbone, BLoBModule, CLoRAModule, IVONModule, LoRA, LoRAModule, ScalaBLModule
from bayeslora.datamodules import JSONLDataModule
from bayeslora.lightning_modules.multiple_choice import MultipleChoiceModule

CASES: dict[str, tuple[type[MultipleChoiceModule], dict[str, Any]]] = {
    "blob": (BLoBModule, {"init_std": 0.1}),
    "blob two": (BLoBModule, {"init_std": 0.1, "optimisers": "two"}),
    "scalabl": (ScalaBLModule, {"init_std": 0.2}),
    "ivon": (IVONModule, {"ess": 1e6}),
    "c_lora": (CLoRAModule, {"init_std": 0.2, "kl_schedule": "cyclic"}),
    "c_lora two": (CLoRAModule, {"init_std": 0.2, "kl_schedule": "cyclic", "optimisers": "two"}),
}
UNEVEN: dict[str, tuple[type[MultipleChoiceModule], dict[str, Any]]] = {
    "mle": (LoRAModule, {}),
    "map": (LoRAModule, {"prior_std": 0.5}),
    **{case: CASES[case] for case in ("blob", "blob two", "c_lora", "scalabl")},
}
BATCH = 12  # questions a micro-batch, of all processes


class Gradients(L.Callback):
    """What every step of every optimiser sees, name to gradient."""

    def __init__(self) -> None:
        self.seen: list[dict[str, torch.Tensor]] = []

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: Any, optimizer: torch.optim.Optimizer) -> None:
        """Note the gradients that there are."""
        found = {name: parameter.grad for name, parameter in pl_module.trainable().items()}
        self.seen.append({name: grad.clone() for name, grad in found.items() if grad is not None})


def gradients(case: str, root: Path, data: Path, processes: int, uneven: bool = False) -> list[dict[str, torch.Tensor]]:
    """Of a run on ``processes`` that share every batch, from factors that are not zero.

    Args:
        case: Of ``CASES``, or of ``UNEVEN``.
        root: Run folder.
        data: Of the questions.
        processes: How many.
        uneven: See every step of an epoch of all questions, two micro-batches a step; or two steps of 48 questions.
    """
    kind, options = (UNEVEN if uneven else CASES)[case]
    divergence = {} if kind in (IVONModule, LoRAModule) else {"kl_weight": 5.0}
    module = kind(Backbone("embedded"), LoRA(), learning_rate=1e-6, seed=1, **divergence, **options)
    module.configure_model()
    source = torch.Generator().manual_seed(2)
    for name, parameter in module.trainable().items():
        if ".lora_B." in name or name.endswith("lora_E.out.weight"):
            parameter.data.copy_(0.05 * torch.randn(parameter.shape, generator=source))
    watch = Gradients()
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = L.Trainer(
        default_root_dir=root,
        accelerator="cpu",
        devices=processes,
        strategy="ddp" if processes > 1 else "auto",
        max_steps=-1 if uneven else 2,
        max_epochs=1,
        accumulate_grad_batches=2 if uneven and module.automatic_optimization else 1,
        limit_val_batches=0,
        enable_checkpointing=False,
        callbacks=[watch],
        **quiet,  # type: ignore[arg-type]
    )
    labels = None if uneven else 60  # a fifth of which is not trained on
    size = BATCH // processes
    trainer.fit(module, datamodule=JSONLDataModule(path=str(data), labels=labels, batch_size=size, seed=1))
    return watch.seen


def of_cases(cases: Iterable[str], *arguments: Any) -> dict[str, list[dict[str, torch.Tensor]]]:
    """The :func:`gradients` of each case, one after the other."""
    return {case: gradients(case, *arguments) for case in cases}
