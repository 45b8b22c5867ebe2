"""Small ensembles, trained through the real Trainer."""

from pathlib import Path
from typing import Any

import lightning as L
import torch

from bayeslora import Backbone, LoRA, LoRAEnsemble
from bayeslora.datamodules import JSONLDataModule
from bayeslora.posteriors.members.store import MemberStore
from tests.helpers.command_line import FAST, ROOT

METHOD = ROOT / "bayeslora" / "configs" / "method" / "ensemble.yaml"


class Double(LoRAEnsemble):
    """An ensemble in float64, where other orders of summation show as rounding alone."""

    def configure_model(self) -> None:
        fresh = self.model is None
        super().configure_model()
        if fresh:
            start = {name: p.detach().clone() for name, p in self.trainable().items()}
            self.double()
            assert all(torch.equal(p, start[name].double()) for name, p in self.trainable().items())


def trainer(root: Path, **changes: Any) -> L.Trainer:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    quiet |= {"enable_checkpointing": False, "num_sanity_val_steps": 0}
    return L.Trainer(**{"default_root_dir": root, "accelerator": "cpu", "max_epochs": 2, **quiet, **changes})


def module(members: int | list[int], kind: type[LoRAEnsemble] = Double, **changes: Any) -> LoRAEnsemble:
    lora = LoRA(r=4, dropout=changes.pop("dropout", 0.1), target_modules=["q_proj", "v_proj"])
    usual = {"learning_rate": 5e-3, "weight_decay": 0.1, "l2_product": 0.1, "warmup": 0.0, "seed": 1}
    return kind(changes.pop("backbone", Backbone("embedded")), lora, members, **{**usual, **changes})


def datamodule(data: Path) -> JSONLDataModule:
    return JSONLDataModule(path=str(data), labels=35, batch_size=8, seed=1)


def fitted(
    root: Path, data: Path, members: int | list[int], kind: type[LoRAEnsemble] = Double, **changes: Any
) -> LoRAEnsemble:
    """An ensemble after two epochs with clipping; ``run`` among the changes goes to the trainer, ``ckpt`` to fit."""
    run, ckpt = changes.pop("run", {}), changes.pop("ckpt", None)
    ensemble = module(members, kind, **changes)
    made = trainer(root, **{"gradient_clip_val": 0.3, **run})
    made.fit(ensemble, datamodule=datamodule(data), ckpt_path=ckpt, weights_only=True)
    return ensemble


def difference(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> float:
    """Largest absolute difference of any entry."""
    assert first.keys() == second.keys()
    return max(float((first[name] - second[name]).detach().abs().max()) for name in first)


def arguments(command: str, root: Path, data: Path, *options: str) -> list[str]:
    """A command of an ensemble on a file of questions."""
    model = [
        "-c",
        str(METHOD),
        "--model.backbone.pretrained=embedded",
        "--model.lora.r=2",
        "--model.optimisation.learning_rate=1e-3",
    ]
    given = ["--data=JSONLDataModule", f"--data.path={data}", "--data.labels=40"]
    return [command, *model, *given, f"--trainer.default_root_dir={root}", *FAST, *options]


def weights(root: Path) -> dict[int, dict[str, torch.Tensor]]:
    """The means of a run folder's members."""
    return {member: posterior.mean() for member, posterior in MemberStore(root / "members").load().items()}
