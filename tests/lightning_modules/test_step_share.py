"""Steps follow the mean over their questions, however micro-batches and processes share them."""

import os
import shutil
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch

from bayeslora import Backbone, LoRA, LoRAEnsemble, LoRAModule
from bayeslora.datamodules import JSONLDataModule
from bayeslora.datamodules.sampler import TrainBatches
from bayeslora.errors import UsageError
from tests.helpers import ddp_gradients
from tests.helpers.ddp import on_processes

QUIET: dict[str, Any] = {
    "accelerator": "cpu",
    "devices": 1,
    "max_epochs": 1,
    "limit_val_batches": 0,
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}


def _first(n: int, data: Path, root: Path) -> Path:
    """The same benchmark with ``n`` training questions."""
    folder = Path(shutil.copytree(data, root / f"data{n}"))
    lines = (folder / "train.jsonl").read_text().splitlines(keepends=True)
    (folder / "train.jsonl").write_text("".join(lines[:n]))
    return folder


@pytest.mark.parametrize("how", ["bucketed", "shuffled", "sequential"])
@pytest.mark.parametrize("n", [95, 96, 97, 1201])
@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("drop_last", [False, True])
def test_the_sampler_tells_the_sizes_of_its_batches(how: Any, n: int, world: int, drop_last: bool) -> None:
    ranks = [TrainBatches(range(n), 4, 1, how, drop_last, rank, world) for rank in range(world)]
    for epoch in range(3):
        for rank in ranks:
            rank.set_epoch(epoch)
        dealt = [sum(map(len, batch)) for batch in zip(*ranks, strict=True)]
        sizes = ranks[0].sizes()
        assert [max(size, world) for size in sizes] == dealt  # each rank has at least one question, if a borrowed one
        assert sum(sizes) == (n // (4 * world) * 4 * world if drop_last else n)


class Steps(L.Callback):
    """The micro-batches of every step, and the gradients that it saw."""

    def __init__(self) -> None:
        self.batches: list[list[Any]] = [[]]
        self.gradients: list[dict[str, torch.Tensor]] = []

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Note the batch."""
        self.batches[-1].append(batch)

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: Any, optimizer: Any) -> None:
        """Note the gradients."""
        self.gradients.append({name: value.grad.clone() for name, value in pl_module.trainable().items()})
        self.batches.append([])


def _fit(module: Any, data: Path, root: Path, **options: Any) -> Steps:
    steps = Steps()
    module.configure_model()
    source = torch.Generator().manual_seed(2)
    for name, parameter in module.trainable().items():
        if ".lora_B." in name:
            parameter.data.copy_(0.05 * torch.randn(parameter.shape, generator=source))
    trainer = L.Trainer(default_root_dir=root, callbacks=[steps], **{**QUIET, **options})
    trainer.fit(module, datamodule=JSONLDataModule(path=str(data), batch_size=8, seed=1))
    return steps


@pytest.mark.parametrize(("n", "together"), [(95, 5), (97, 4), (97, 5), (33, 100)])
def test_a_step_follows_the_mean_over_its_questions(n: int, together: int, data: Path, tmp_path: Path) -> None:
    module = LoRAModule(Backbone("embedded"), LoRA(dropout=0.0), prior_std=0.5, learning_rate=1e-9, seed=1)
    steps = _fit(module, _first(n, data, tmp_path), tmp_path, accumulate_grad_batches=together)
    for batches, seen in zip(steps.batches, steps.gradients, strict=False):
        count = sum(len(batch) for batch in batches)
        total = sum(len(batch) * module.nll(batch, module.training_noise()) for batch in batches) / count
        square = sum(p.square().sum() for p in module.trainable().values())
        loss = total + square / (2 * 0.5**2 * n)
        wanted = torch.autograd.grad(loss, list(module.trainable().values()))
        for value, (name, own) in zip(wanted, seen.items(), strict=True):
            torch.testing.assert_close(own, value, atol=2e-6, rtol=2e-4, msg=lambda text, name=name: f"{name}: {text}")


def test_every_member_of_an_ensemble_follows_the_mean_over_its_questions(data: Path, tmp_path: Path) -> None:
    module = LoRAEnsemble(Backbone("embedded"), LoRA(), members=2, l2_product=0.1, learning_rate=1e-9, seed=1)
    steps = _fit(module, _first(33, data, tmp_path), tmp_path, accumulate_grad_batches=4)
    assert len(steps.gradients) == 2  # of four micro-batches, and of the fifth
    sizes = [[[len(own) for own in batch] for batch in batches] for batches in steps.batches[:2]]
    assert any(batch[0] != batch[1] for step in sizes for batch in step)  # the members' orders differ
    for batches, seen in zip(steps.batches, steps.gradients, strict=False):
        wanted = [_loss_of_member(module, place, [batch[place] for batch in batches]) for place in (0, 1)]
        gradients = torch.autograd.grad(sum(wanted), list(module.trainable().values()))  # type: ignore[arg-type]
        for value, own in zip(gradients, seen.values(), strict=True):
            torch.testing.assert_close(own, value, atol=2e-6, rtol=2e-4)


def _loss_of_member(module: LoRAEnsemble, place: int, batches: list[Any]) -> torch.Tensor:
    """The mean over the questions of all batches, and one penalty."""
    weight, module.l2_product = module.l2_product, 0.0
    likelihoods = [module.member_losses([place], [batch])[0] for batch in batches]
    module.l2_product = weight
    penalty = module.member_losses([place], batches[:1])[0] - likelihoods[0]
    total = sum(len(batch) * nll for batch, nll in zip(batches, likelihoods, strict=True))
    return total / sum(map(len, batches)) + penalty  # type: ignore[no-any-return]


def test_a_loader_that_tells_no_sizes_keeps_the_trainers_weights() -> None:
    from types import SimpleNamespace

    from bayeslora.lightning_modules.step_share import StepShare, shares

    trainer = SimpleNamespace(train_dataloader=[1, 2], accumulate_grad_batches=4, num_training_batches=float("inf"))
    assert shares(trainer, 7) == [StepShare()] * 2
    trainer.num_training_batches = 6
    assert shares(trainer, 3) == [StepShare()] * 2
    assert shares(trainer, 5) == [StepShare(2.0, 2.0)] * 2


SHORT = [(2, 35, ("map", "blob", "c_lora")), (3, 25, ("map",))]  # the second has a batch of 1 for three processes
LONG = [(processes, n, tuple(ddp_gradients.UNEVEN)) for processes in (2, 3) for n in (95, 97)]


@pytest.mark.parametrize(("processes", "n", "cases"), LONG if os.environ.get("BAYESLORA_LONG") else SHORT)
def test_processes_see_the_gradients_of_one(
    processes: int, n: int, cases: tuple[str, ...], data: Path, tmp_path: Path
) -> None:
    data = _first(n, data, tmp_path)
    together = on_processes(processes, ddp_gradients.of_cases, cases, tmp_path, data, processes, True)
    for case in cases:
        alone = ddp_gradients.gradients(case, tmp_path, data, processes=1, uneven=True)
        batches = -(-n // ddp_gradients.BATCH)
        assert len(together[case]) == len(alone) == (2 * batches if case.endswith("two") else -(-batches // 2))
        for step, (shared, own) in enumerate(zip(together[case], alone, strict=True)):
            torch.testing.assert_close(
                shared, own, atol=1e-5, rtol=1e-3, msg=lambda text, at=(case, step): f"{at}: {text}"
            )


def test_an_ensemble_on_several_processes_is_refused_with_the_remedy(tmp_path: Path) -> None:
    module = LoRAEnsemble(Backbone("embedded"), LoRA(), members=2)
    trainer = L.Trainer(default_root_dir=tmp_path, **{**QUIET, "devices": 2, "strategy": "ddp"})
    module.trainer = trainer
    with pytest.raises(UsageError, match=r"--trainer.devices 1\), and start `bayeslora ensemble` once for each device"):
        module.configure_model()
