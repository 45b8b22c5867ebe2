"""Numbers of every step are read on the host only where a bar shows them."""

from pathlib import Path

import lightning as L
import pytest
from lightning.pytorch.callbacks import TQDMProgressBar

from bayeslora import Backbone, LoRA, LoRAEnsemble, LoRAModule
from bayeslora.datamodules.synthetic import SyntheticDataModule
from bayeslora.lightning_modules.multiple_choice import MultipleChoiceModule
from bayeslora.lightning_modules.progress import bar_is_shown


class Shown(L.Callback):
    """What a bar would be told after every step."""

    def __init__(self) -> None:
        self.names: list[set[str]] = []

    def on_train_batch_end(self, trainer: L.Trainer, *_: object) -> None:
        self.names.append(set(trainer.progress_bar_metrics))
        assert "train/loss" in trainer.callback_metrics  # logged all the same


def ensemble() -> MultipleChoiceModule:
    return LoRAEnsemble(Backbone("embedded"), LoRA(r=2), members=2, share_data_order=True)


def single() -> MultipleChoiceModule:
    return LoRAModule(Backbone("embedded"), LoRA(r=2))


@pytest.mark.parametrize("make", [single, ensemble])
@pytest.mark.parametrize("bar", ["none", "off", "on"])
def test_the_loss_of_a_step_is_read_where_a_bar_shows_it(make, bar: str, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    shown = Shown()
    trainer = L.Trainer(
        accelerator="cpu",
        max_steps=2,
        limit_val_batches=0,
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=bar != "none",
        use_distributed_sampler=False,
        default_root_dir=tmp_path,
        callbacks=[shown, *([] if bar == "none" else [TQDMProgressBar(refresh_rate=int(bar == "on"))])],
    )
    trainer.fit(make(), datamodule=SyntheticDataModule(batch_size=4))
    assert shown.names == [{"train/loss"} if bar == "on" else set()] * 2


def test_without_a_trainer_there_is_no_bar() -> None:
    assert not bar_is_shown(None)
