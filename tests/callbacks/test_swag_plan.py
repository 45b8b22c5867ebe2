"""When SWAG collects: a rule of one's own, a run that becomes longer, one that ends early, one that is only tried."""

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from bayeslora.callbacks.swag import SWAG
from bayeslora.errors import UsageError

QUIET: dict[str, Any] = {
    "accelerator": "cpu",
    "logger": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}


class Line(L.LightningModule):
    """A linear map that is pulled to zero, three steps an epoch."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Linear(2, 1)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        loss = self.net(batch[0]).square().mean()
        self.log("loss", loss, on_epoch=True, on_step=False)
        return loss

    def train_dataloader(self) -> Any:
        return DataLoader(TensorDataset(torch.eye(2).repeat(6, 1)), 4)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(swag: SWAG, *callbacks: L.Callback, ckpt: Path | None = None, **options: Any) -> L.Trainer:
    saving = any(isinstance(callback, ModelCheckpoint) for callback in callbacks)
    trainer = L.Trainer(callbacks=[swag, *callbacks], enable_checkpointing=saving, **QUIET, **options)
    trainer.fit(Line(), ckpt_path=ckpt, weights_only=True if ckpt else None)
    return trainer


def test_should_collect_may_be_overridden() -> None:
    class FirstAndLast(SWAG):
        def should_collect(self, step_idx: int | None = None, epoch_idx: int | None = None) -> bool:
            return epoch_idx in (0, 4)

    swag = FirstAndLast(start=2)
    fit(swag, max_epochs=5)
    assert swag.moments is not None
    assert swag.moments.count == 2


def test_snapshots_of_a_shorter_run_are_not_mixed_with_those_of_a_longer(tmp_path: Path) -> None:
    every = ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1, every_n_epochs=1)
    fit(SWAG(start=0.5), every, max_epochs=4)
    late, early = tmp_path / "epoch=3.ckpt", tmp_path / "epoch=1.ckpt"
    with pytest.raises(UsageError, match=r"from epoch 2 on, start 0\.5 is epoch 4 of this run"):
        fit(SWAG(start=0.5), ckpt=late, max_epochs=8)
    alone, resumed = SWAG(start=0.5), SWAG(start=0.5)
    fit(alone, max_epochs=8)
    fit(resumed, ckpt=early, max_epochs=8)  # nothing was collected yet
    assert alone.moments is not None and resumed.moments is not None  # noqa: PT018
    assert alone.moments.count == resumed.moments.count == 4
    assert torch.equal(alone.moments.mean, resumed.moments.mean)
    longer = SWAG(start=2)
    fit(longer, max_epochs=8)
    assert longer.moments is not None
    assert longer.moments.count == 6


def test_a_run_that_ends_before_collection_says_so() -> None:
    stop = EarlyStopping("loss", mode="max", patience=1)
    with pytest.warns(UserWarning, match="has 0 snapshots, mode full needs 2.*start at epoch 15"):
        fit(SWAG(start=0.5), stop, max_epochs=30)
    with pytest.warns(UserWarning, match="has 1 snapshots, mode full needs 2.*start at epoch 2"):
        fit(SWAG(start=2), max_epochs=3)


def test_a_run_that_is_only_tried_is_not_refused() -> None:
    fit(SWAG(start=1), fast_dev_run=True)


class TwoByHand(Line):
    """Steps two optimisers by hand, so that a batch is two optimiser steps."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: list[Tensor], batch_idx: int) -> None:
        for optimizer in self.optimizers():
            optimizer.zero_grad()
            self.manual_backward(self.net(batch[0]).square().mean())
            optimizer.step()

    def configure_optimizers(self) -> Any:
        return [torch.optim.SGD([parameter], lr=0.1) for parameter in self.parameters()]


def test_a_fraction_of_steps_that_are_not_known_is_refused() -> None:
    trainer = L.Trainer(max_epochs=4, enable_checkpointing=False, callbacks=[SWAG(0.5, unit="step")], **QUIET)
    with pytest.raises(UsageError, match=r"2 optimisers are stepped by hand.*give start as a number of steps"):
        trainer.fit(TwoByHand())
    swag = SWAG(20, unit="step")  # of 24
    L.Trainer(max_epochs=4, enable_checkpointing=False, callbacks=[swag], **QUIET).fit(TwoByHand())
    assert swag.moments is not None
    assert swag.moments.count == 3  # after batches 10, 11 and 12


def test_the_remedy_fits_what_was_given() -> None:
    with pytest.raises(UsageError, match=r"give unit step, the run ends within its first epoch$"):
        fit(SWAG(start=0.5), max_epochs=5, max_steps=2)
    with pytest.raises(UsageError, match=r"give an earlier start, or a fraction of the run such as 0\.5$"):
        fit(SWAG(start=4), max_epochs=4)
