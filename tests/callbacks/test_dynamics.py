"""The callback leaves training alone, writes every epoch once, and says how far members are apart."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from bayeslora.callbacks.dynamics import Dynamics
from bayeslora.datamodules.jsonl import JSONLDataModule
from bayeslora.errors import UsageError
from bayeslora.files import read_record, write_record
from bayeslora.lightning_modules.ensemble import LoRAEnsemble
from bayeslora.lightning_modules.lora import LoRAModule
from bayeslora.models.loading import LoRA
from bayeslora.results.prediction_file import read_predictions
from bayeslora.types import Samples

QUIET: dict[str, Any] = {
    "accelerator": "cpu",
    "logger": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}


def fit(
    data: Path, root: Path, epochs: int, *callbacks: L.Callback, ckpt: Path | None = None, kind: Any = LoRAModule
) -> Any:
    torch.manual_seed(0)
    module = kind(lora=LoRA(r=4, alpha=8, dropout=0.1), learning_rate=2e-3, warmup=0, seed=5)
    saving = ModelCheckpoint(root / "kept", filename="{epoch}", save_top_k=-1, save_on_train_epoch_end=True)
    options = {"max_epochs": epochs, "use_distributed_sampler": False, "default_root_dir": root}
    trainer = L.Trainer(callbacks=[*callbacks, saving], **options, **QUIET)
    datamodule = JSONLDataModule(path=str(data), labels=50, batch_size=8, eval_batch_size=32)
    trainer.fit(module, datamodule=datamodule, ckpt_path=ckpt, weights_only=True)
    return module


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir())}


def test_training_is_bit_for_bit_what_it_is_without(data: Path, tmp_path: Path) -> None:
    ends, states = [], []
    for name, callbacks in (("without", []), ("with", [Dynamics()])):
        module = fit(data, tmp_path / name, 2, *callbacks)
        ends.append(module.state_dict())
        states.append(torch.get_rng_state())
    assert all(torch.equal(value, ends[1][name]) for name, value in ends[0].items())
    assert torch.equal(*states)


def test_epoch_zero_is_the_base_and_the_last_epoch_is_what_a_test_predicts(data: Path, tmp_path: Path) -> None:
    module = fit(data, tmp_path, 2, Dynamics())
    datamodule = JSONLDataModule(path=str(data), labels=50, batch_size=8, eval_batch_size=32)
    names = [*datamodule.test_names, "validation"]
    (test,) = datamodule.test_dataloader()
    for epoch in (0, 2):
        found = read_predictions(tmp_path / "dynamics" / f"epoch-{epoch:03d}.parquet")
        assert list(found.datasets) == names
        network = module.model.network.base_model
        network.disable_adapter_layers() if epoch == 0 else network.enable_adapter_layers()
        with torch.no_grad():
            for batch in test:
                predictive = module.predictive(batch)
                answers = found.datasets[names[0]][batch.example_id]
                torch.testing.assert_close(answers.probs, predictive.probs.double())
                torch.testing.assert_close(answers.logits, predictive.logits.transpose(0, 1).double())
                torch.testing.assert_close(answers.logsumexp, predictive.logsumexp.T.double())
    first, last = (json.loads((tmp_path / "dynamics" / f"epoch-00{e}.json").read_text()) for e in (0, 2))
    assert (first["step"], first["members"], first["gram"], first["cosine"]) == (0, [0], [[0.0]], [[None]])
    assert last["step"] == 2 * 5
    assert last["gram"][0][0] > 0
    assert last["cosine"][0][0] == pytest.approx(1)


def test_a_resumed_run_ends_with_the_same_files_and_makes_none_again(data: Path, tmp_path: Path) -> None:
    fit(data, tmp_path / "whole", 3, Dynamics())
    whole = contents(tmp_path / "whole" / "dynamics")
    assert len(whole) == 2 * 4
    fit(data, tmp_path / "cut", 3, Dynamics())
    folder = tmp_path / "cut" / "dynamics"
    for kind in ("parquet", "json"):
        (folder / f"epoch-003.{kind}").unlink()
    (folder / "epoch-002.json").unlink()  # killed before the epoch was marked as whole
    made = {file.name: file.stat().st_mtime_ns for file in folder.iterdir()}
    fit(data, tmp_path / "cut", 3, Dynamics(), ckpt=tmp_path / "cut" / "kept" / "epoch=0.ckpt")
    assert contents(folder) == whole
    again = {name for name, when in made.items() if (folder / name).stat().st_mtime_ns != when}
    assert again == {"epoch-002.parquet"}


def test_epochs_of_other_weights_are_replaced_and_later_ones_removed(data: Path, tmp_path: Path) -> None:
    fit(data, tmp_path, 3, Dynamics())
    folder = tmp_path / "dynamics"
    before = contents(folder)
    record = read_record(folder / "epoch-002.json", "")
    write_record(folder / "epoch-002.json", record | {"weights": "others"})
    fit(data, tmp_path, 2, Dynamics(), ckpt=tmp_path / "kept" / "epoch=0.ckpt")
    after = contents(folder)
    assert sorted(after) == [f"epoch-00{epoch}.{kind}" for epoch in range(3) for kind in ("json", "parquet")]
    assert after["epoch-001.parquet"] == before["epoch-001.parquet"]
    assert json.loads(after["epoch-002.json"])["weights"] != "others"


@pytest.mark.parametrize(("every", "epochs"), [(2, (0, 2, 4, 5)), ([1, 4], (0, 1, 4, 5))])
def test_every_and_the_sets_asked_for(data: Path, tmp_path: Path, every: Any, epochs: tuple[int, ...]) -> None:
    fit(data, tmp_path, 5, Dynamics(every=every, datasets=["validation"]))
    folder = tmp_path / "dynamics"
    assert [file.name for file in sorted(folder.glob("*.parquet"))] == [f"epoch-00{epoch}.parquet" for epoch in epochs]
    assert list(read_predictions(folder / "epoch-004.parquet").datasets) == ["validation"]


def test_a_second_training_is_not_mixed_with_the_first(data: Path, tmp_path: Path) -> None:
    fit(data, tmp_path, 2, Dynamics())
    before = contents(tmp_path / "dynamics")
    with pytest.raises(UsageError, match=r"already holds the dynamics of a training; .*overwrite=True"):
        fit(data, tmp_path, 1, Dynamics())
    assert contents(tmp_path / "dynamics") == before
    fit(data, tmp_path, 1, Dynamics(overwrite=True))
    assert not (tmp_path / "dynamics" / "epoch-002.json").exists()


def test_what_cannot_be_is_said_in_a_line(data: Path, tmp_path: Path) -> None:
    for every in (0, [], [5, 0]):
        with pytest.raises(UsageError, match=r"every is .*; allowed: a number of epochs from 1, or a list of them"):
            Dynamics(every=every)
    with pytest.raises(UsageError, match=r"datasets are \['tset'\]; allowed: .*, validation"):
        fit(data, tmp_path, 1, Dynamics(datasets=["tset"]))


# --- ensembles -------------------------------------------------------------------------------------------------------

TRIO = partial(LoRAEnsemble, members=[4, 0, 7])


def test_an_ensemble_starts_as_one_function_and_its_members_part(data: Path, tmp_path: Path) -> None:
    alone = fit(data, tmp_path / "without", 2, kind=TRIO).state_dict()
    module = fit(data, tmp_path, 2, Dynamics(), kind=TRIO)
    assert all(torch.equal(value, alone[name]) for name, value in module.state_dict().items())
    folder = tmp_path / "dynamics"
    base, end = (read_predictions(folder / f"epoch-00{epoch}.parquet").datasets["validation"] for epoch in (0, 2))
    assert torch.equal(base.members, base.members[:, :1].expand(-1, 3, -1))
    assert base.epistemic.max() == 0
    assert end.epistemic.mean() > 0
    record = json.loads((folder / "epoch-002.json").read_text())
    assert record["members"] == [4, 0, 7]
    products = [_products(module.member_parameters(place)) for place in range(3)]
    wanted = torch.stack(products) @ torch.stack(products).T
    torch.testing.assert_close(torch.tensor(record["gram"]).double(), wanted.double(), rtol=1e-4, atol=1e-9)
    assert 0 < record["cosine"][0][1] < 1
    for place in range(3):  # a member's predictions are those of its own adapter
        weights = {name: value[place : place + 1] for name, value in module.trainable().items()}
        for batch in module.trainer.datamodule.val_dataloader():
            with torch.no_grad():
                probs = module.sampled(batch, Samples(weights)).probs
            torch.testing.assert_close(end.members[batch.example_id, place], probs.double(), rtol=1e-4, atol=1e-5)


def _products(member: dict[str, Tensor]) -> Tensor:
    downs = [name for name in member if "lora_A" in name]
    return torch.cat([(member[name.replace("lora_A", "lora_B")] @ member[name]).flatten() for name in downs])


def test_members_that_fail_leave_the_files_of_later_epochs(data: Path, tmp_path: Path) -> None:
    fit(data, tmp_path, 2, Dynamics(datasets=["validation"]), Poison(), kind=TRIO)
    folder = tmp_path / "dynamics"
    records = [json.loads((folder / f"epoch-00{epoch}.json").read_text()) for epoch in range(3)]
    assert [record["members"] for record in records] == [[4, 0, 7], [4, 0, 7], [4, 7]]
    assert len(records[2]["cosine"]) == 2
    assert read_predictions(folder / "epoch-002.parquet").datasets["validation"].n_members == 2


class Poison(L.Callback):
    """Makes the second member's loss infinite in the second epoch."""

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        if trainer.current_epoch == 1:
            for value in pl_module.member_parameters(1).values():
                value.fill_(torch.inf)


# --- modules and data of another kind --------------------------------------------------------------------------------


class Noisy(L.LightningModule):
    """Dropout from the global generator and running statistics, both of which an evaluation could disturb."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 2))
        self.net[2].eval()  # a mode of its own, to be kept

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def shuffled(n: int, seed: int) -> DataLoader:
    x = torch.randn(n, 4, generator=torch.Generator().manual_seed(seed))
    return DataLoader(TensorDataset(x, (x.sum(-1) > 0).long()), 4, shuffle=seed == 1)


def test_any_module_is_followed_and_left_alone(tmp_path: Path) -> None:
    ends = []
    follow = Dynamics(
        logits_fn=lambda module, batch: module.net(batch[0]),
        label_fn=lambda batch: batch[1],
        loaders_fn=lambda trainer: {"near": shuffled(10, 2), "far": shuffled(6, 3)},
    )
    for callbacks in ([], [follow]):
        module = Noisy()
        trainer = L.Trainer(max_epochs=3, callbacks=callbacks, default_root_dir=tmp_path, **QUIET)
        trainer.fit(module, shuffled(16, 1))
        ends.append(module.state_dict())
        assert [m.training for m in module.net] == [True, True, False, True]
    assert all(torch.equal(value, ends[1][name]) for name, value in ends[0].items())
    found = read_predictions(tmp_path / "dynamics" / "epoch-003.parquet")
    assert {name: len(answers) for name, answers in found.datasets.items()} == {"near": 10, "far": 6}


def test_data_of_another_kind_need_their_loaders_named(tmp_path: Path) -> None:
    trainer = L.Trainer(max_epochs=1, callbacks=[Dynamics()], default_root_dir=tmp_path, **QUIET)
    with pytest.raises(UsageError, match=r"give it loaders_fn: trainer -> \{dataset: loader\}"):
        trainer.fit(Noisy(), shuffled(16, 1))
