"""A run resumed from any of its checkpoints sees exactly the batches it would have seen without a stop."""

from itertools import dropwhile
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from bayeslora.datamodules.jsonl import JSONLDataModule
from bayeslora.errors import UsageError
from bayeslora.types import AnswerBatch

BATCHES = 10  # of an epoch: 37 questions in batches of 4
STEPS = 5  # of the optimiser in an epoch: two batches each

pytestmark = pytest.mark.filterwarnings("ignore:Checkpoint directory", "ignore:`isinstance.treespec")


class Toy(lightning.LightningModule):
    """One weight, trained with momentum and a warm-up that needs the number of steps; it records what it sees."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1, dtype=torch.float64))
        self.events: list[tuple[Any, ...]] = []

    def training_step(self, batch: AnswerBatch, batch_idx: int) -> torch.Tensor:
        ids = tuple(batch.example_id.tolist())
        self.events.append(("train", self.current_epoch, batch_idx, self.trainer.is_last_batch, self.global_step, ids))
        return ((self.weight - batch.example_id.double().mean()) ** 2).sum()

    def validation_step(self, batch: AnswerBatch, batch_idx: int) -> None:
        if not self.trainer.sanity_checking:
            ids = tuple(batch.example_id.tolist())
            self.events.append(("validate", self.current_epoch, batch_idx, self.global_step, ids))

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD([self.weight], lr=1e-2, momentum=0.9)
        steps = self.trainer.estimated_stepping_batches
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda n: min(1, (n + 1) / 5) * (1 - n / steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def run(
    folder: Path, tokenizer: Any, checkpoint: ModelCheckpoint | None = None, resume: Path | None = None, **trainer: Any
) -> tuple[Toy, lightning.Trainer]:
    data = JSONLDataModule(path=str(folder), tokenizer=tokenizer, batch_size=4, seed=3)
    options = {"max_epochs": 3, "accumulate_grad_batches": 2, **trainer}
    fit = lightning.Trainer(
        accelerator="cpu",
        logger=False,
        enable_model_summary=False,
        enable_progress_bar=False,
        enable_checkpointing=checkpoint is not None,
        callbacks=[] if checkpoint is None else [checkpoint],
        **options,
    )
    module = Toy()
    fit.fit(module, data, ckpt_path=resume)
    return module, fit


def trained(events: list[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    return [event for event in events if event[0] == "train"]


@pytest.mark.parametrize("trainer", [{}, {"val_check_interval": 4}, {"max_epochs": -1, "max_steps": 13}])
def test_resume_from_every_optimiser_step(
    question_folder: Path, tmp_path: Path, byte_level: Any, trainer: dict[str, Any]
) -> None:
    checkpoint = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=1, save_top_k=-1)
    whole, reference = run(question_folder, byte_level, checkpoint, **trainer)
    assert {len(event[-1]) for event in trained(whole.events)} == {4, 1}
    for step in range(1, reference.global_step):
        resumed, finished = run(question_folder, byte_level, resume=tmp_path / f"step={step}.ckpt", **trainer)
        done = max(i for i, event in enumerate(whole.events) if event[0] == "train" and event[4] < step)
        # The trainer does not make up for a validation that was due right when the checkpoint was written.
        following = dropwhile(lambda event: event[0] == "validate", whole.events[done + 1 :])
        assert resumed.events == list(following)
        assert finished.global_step == reference.global_step
        assert torch.equal(resumed.weight, whole.weight)


@pytest.mark.parametrize("on_train_epoch_end", [True, False])
def test_resume_from_the_end_of_an_epoch(
    question_folder: Path, tmp_path: Path, byte_level: Any, on_train_epoch_end: bool
) -> None:
    checkpoint = ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1, save_on_train_epoch_end=on_train_epoch_end)
    whole, reference = run(question_folder, byte_level, checkpoint)
    for epoch in range(2):
        resumed, finished = run(question_folder, byte_level, resume=tmp_path / f"epoch={epoch}.ckpt")
        assert trained(resumed.events) == trained(whole.events)[BATCHES * (epoch + 1) :]
        assert finished.global_step == reference.global_step == 3 * STEPS
        assert torch.equal(resumed.weight, whole.weight)


def test_a_finished_run_can_be_prolonged(question_folder: Path, tmp_path: Path, byte_level: Any) -> None:
    whole, _ = run(question_folder, byte_level)
    _, short = run(question_folder, byte_level, max_epochs=1)
    short.save_checkpoint(tmp_path / "end.ckpt")
    longer, _ = run(question_folder, byte_level, resume=tmp_path / "end.ckpt")
    assert trained(longer.events) == trained(whole.events)[BATCHES:]


@pytest.mark.parametrize("steps", [3, STEPS, 7])
def test_a_run_stopped_by_its_steps_can_be_prolonged(
    question_folder: Path, tmp_path: Path, byte_level: Any, steps: int
) -> None:
    whole, _ = run(question_folder, byte_level, max_epochs=-1, max_steps=13)
    _, short = run(question_folder, byte_level, max_epochs=-1, max_steps=steps)
    short.save_checkpoint(tmp_path / "end.ckpt")
    checkpoint = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=1, save_top_k=-1)
    resume = {"max_epochs": -1, "max_steps": 13, "resume": tmp_path / "end.ckpt"}
    longer, _ = run(question_folder, byte_level, checkpoint, **resume)
    expected = [event[-1] for event in trained(whole.events)]
    assert [event[-1] for event in trained(longer.events)] == expected[2 * steps :]
    again, _ = run(question_folder, byte_level, **(resume | {"resume": tmp_path / f"step={steps + 1}.ckpt"}))
    assert [event[-1] for event in trained(again.events)] == expected[2 * (steps + 1) :]


def test_epochs_differ_and_questions_are_seen_once_each(question_folder: Path, byte_level: Any) -> None:
    whole, _ = run(question_folder, byte_level)
    ids = [[i for event in trained(whole.events) if event[1] == epoch for i in event[-1]] for epoch in range(3)]
    assert all(sorted(epoch) == list(range(37)) for epoch in ids)
    assert ids[0] != ids[1] != ids[2]


def test_members_of_an_ensemble_have_orders_of_their_own_and_resume_together(
    question_folder: Path, tmp_path: Path, byte_level: Any
) -> None:
    class Members(Toy):
        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            self.events.append(tuple(tuple(member.example_id.tolist()) for member in batch))
            return (self.weight**2).sum()

    def fit(members: tuple[int, ...], resume: Path | None = None) -> tuple[list[Any], lightning.Trainer]:
        data = JSONLDataModule(path=str(question_folder), tokenizer=byte_level, batch_size=4, seed=3)
        data.members = members
        options = {"logger": False, "enable_model_summary": False, "enable_progress_bar": False, "max_epochs": 2}
        checkpoint = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=13, save_top_k=-1)
        trainer = lightning.Trainer(accelerator="cpu", limit_val_batches=0, callbacks=[checkpoint], **options)
        module = Members()
        trainer.fit(module, data, ckpt_path=resume)
        return module.events, trainer

    together, _ = fit((0, 2))
    alone, _ = run(question_folder, byte_level, max_epochs=2)
    assert [first for first, _ in together] == [event[-1] for event in trained(alone.events)]
    assert sorted(i for _, ids in together[:BATCHES] for i in ids) == list(range(37))
    assert [first for first, _ in together] != [second for _, second in together]
    assert fit((0, 2), resume=tmp_path / "step=13.ckpt")[0] == together[13:]
    with pytest.raises(UsageError, match="members"):
        fit((0, 1), resume=tmp_path / "step=13.ckpt")


@pytest.mark.parametrize("change", [{"batch_size": 8}, {"seed": 4}, {"labels": 20}])
def test_other_data_than_the_checkpoint_are_refused(
    question_folder: Path, tmp_path: Path, byte_level: Any, change: dict[str, int]
) -> None:
    _, trainer = run(question_folder, byte_level, max_epochs=1)
    trainer.save_checkpoint(tmp_path / "end.ckpt")
    arguments = {"batch_size": 4, "seed": 3, **change}
    data = JSONLDataModule(path=str(question_folder), tokenizer=byte_level, **arguments)
    again = lightning.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, max_epochs=2)
    with pytest.raises(UsageError, match=r"cannot resume: .* is .* and was .* in the checkpoint"):
        again.fit(Toy(), data, ckpt_path=tmp_path / "end.ckpt")


def test_validation_takes_a_checkpoint_of_other_data(question_folder: Path, tmp_path: Path, byte_level: Any) -> None:
    _, trainer = run(question_folder, byte_level, max_epochs=1)
    trainer.save_checkpoint(tmp_path / "end.ckpt")
    data = JSONLDataModule(path=str(question_folder), tokenizer=byte_level, batch_size=8)
    again = lightning.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)
    module = Toy()
    again.validate(module, data, ckpt_path=tmp_path / "end.ckpt")
    assert sorted(i for event in module.events for i in event[-1]) == list(range(10))
