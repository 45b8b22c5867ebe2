"""The callback writes every question once and in order, whatever the batches, the ranks and the module."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from bayeslora.callbacks.predictions import Predictions
from bayeslora.callbacks.report import Report
from bayeslora.errors import RunError, UsageError
from bayeslora.lightning_modules.prediction_path import prediction_path
from bayeslora.metrics.answers import UNKNOWN
from bayeslora.results.prediction_file import read_predictions
from bayeslora.types import AnswerBatch, Predictive
from tests.helpers.answering import SIZES, Data, Module, answer_batch, logits_of, trainer
from tests.helpers.ddp import on_processes


@pytest.mark.parametrize("wrap", [False, True])
@pytest.mark.parametrize("batch_size", [1, 4, 50])
def test_every_question_once_and_in_order(tmp_path: Path, batch_size: int, wrap: bool) -> None:
    trainer(tmp_path, Predictions()).test(Module(wrap), Data(batch_size=batch_size))
    found = read_predictions(tmp_path / "test" / "predictions.parquet")
    assert (found.method, found.seed, list(found.datasets)) == ("toy", 7, ["test", "ood:far"])
    for name, answers in found.datasets.items():
        rows = torch.arange(SIZES[name])
        assert list(answers.example_id) == [f"{name}/q{row}" for row in rows.tolist()]
        assert torch.equal(answers.label, rows % 2)
        want = Predictive.from_logits(logits_of(rows))
        assert torch.allclose(answers.probs, want.probs, atol=1e-15)
        assert torch.allclose(answers.members.transpose(0, 1), want.log_probs.exp(), atol=1e-15)
    true_probs = found.datasets["test"].true_probs
    assert true_probs[:2].tolist() == [[0.5, 0.5, 0.0], [0.2, 0.3, 0.5]]
    assert found.datasets["ood:far"].true_probs is None


class TwoOrders(Data):
    """Every question twice: its options in the source's order and turned round."""

    def test_dataloader(self) -> list[Any]:
        loader = super().test_dataloader()[0]
        batches = [self.turned(batch) for batch in loader]
        return [DataLoader(batches, batch_size=None)]

    @staticmethod
    def turned(batch: AnswerBatch) -> AnswerBatch:
        wide = answer_batch([row for row in batch.example_id.tolist() for _ in range(2)], batch.dataset)
        order = torch.arange(wide.answer_mask.shape[1]).repeat(len(wide), 1)
        for row in range(1, len(wide), 2):
            present = int(wide.answer_mask[row].sum())
            order[row, :present] = order[row, :present].flip(0)
        return replace(wide, option_order=order, label=order.gather(1, wide.label[:, None]).squeeze(1))


class Shown(Module):
    """Answers the options as they are shown, whatever their place; a Gaussian on request."""

    gaussian = False

    def test_step(self, batch: AnswerBatch, batch_idx: int, dataloader_idx: int = 0) -> Any:
        source = logits_of(batch.example_id)[:, :, : batch.answer_mask.shape[1]]
        logits = source.gather(-1, batch.option_order.expand(2, -1, -1))
        if self.gaussian:
            mean = (logits - logits[:, :, :1])[0, :, 1:]
            return Predictive.from_gaussian(mean, torch.zeros(len(batch), mean.shape[1], mean.shape[1]))
        return Predictive.from_logits(logits)


def test_orders_of_the_options_are_averaged_into_one_prediction(tmp_path: Path) -> None:
    rows = {"test": list(range(SIZES["test"]))}
    trainer(tmp_path, Predictions()).test(Shown(), TwoOrders(rows))
    answers = read_predictions(tmp_path / "test" / "predictions.parquet").datasets["test"]
    row = torch.arange(SIZES["test"])
    assert torch.allclose(answers.probs, Predictive.from_logits(logits_of(row)).probs)
    assert torch.equal(answers.label, row % 2)
    module = Shown()
    module.gaussian = True
    with pytest.raises(UsageError, match="permutations to 1"):
        trainer(tmp_path / "gaussian", Predictions()).test(module, TwoOrders(rows))


def test_predict_writes_a_folder_of_its_own(tmp_path: Path) -> None:
    trainer(tmp_path, Predictions()).predict(Module(), Data(), return_predictions=False)
    assert list(read_predictions(tmp_path / "predict" / "predictions.parquet").datasets) == ["test", "ood:far"]


def test_results_are_not_overwritten_unless_asked(tmp_path: Path) -> None:
    trainer(tmp_path, Predictions()).test(Module(), Data())
    before = (tmp_path / "test" / "predictions.parquet").read_bytes()
    with pytest.raises(UsageError, match=r"test already holds results; .* overwrite=True"):
        trainer(tmp_path, Predictions()).test(Module(bad_row=0), Data())
    assert (tmp_path / "test" / "predictions.parquet").read_bytes() == before
    (tmp_path / "test" / "metrics.json").write_text("of other predictions")
    trainer(tmp_path, Predictions(overwrite=True)).test(Module(), Data())
    assert [path.name for path in (tmp_path / "test").iterdir()] == ["predictions.parquet"]
    trainer(tmp_path, Predictions(tmp_path / "elsewhere")).test(Module(), Data())
    assert (tmp_path / "elsewhere" / "predictions.parquet").exists()


def test_repeated_and_missing_questions_stop_the_run(tmp_path: Path) -> None:
    rows = list(range(SIZES["test"]))
    with pytest.raises(RunError, match="1 questions of test were met twice, the first is test/q5"):
        trainer(tmp_path, Predictions()).test(Module(), Data({"test": [*rows, 5]}))
    with pytest.raises(RunError, match="2 questions of test were never met, the first is test/q3"):
        trainer(tmp_path, Predictions()).test(Module(), Data({"test": [row for row in rows if row not in (3, 9)]}))
    assert not list(tmp_path.rglob("*.parquet"))
    trainer(tmp_path, Predictions(), limit_test_batches=2).test(Module(), Data())
    assert len(read_predictions(tmp_path / "test" / "predictions.parquet").datasets["test"]) == 8


def test_nan_stops_the_run_and_names_the_question(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="of test are NaN, the first is test/q4"):
        trainer(tmp_path, Predictions()).test(Module(bad_row=4), Data())
    assert not list(tmp_path.rglob("*.parquet"))


class Foreign(L.LightningModule):
    """A module that has never heard of this package."""

    def __init__(self) -> None:
        super().__init__()
        self.net = torch.nn.Linear(4, 3)

    def test_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return torch.nn.functional.cross_entropy(self.net(batch[0]), batch[1])


def foreign_data() -> TensorDataset:
    generator = torch.Generator().manual_seed(0)
    return TensorDataset(torch.randn(10, 4, generator=generator), torch.arange(10) % 3, torch.arange(10))


def test_foreign_modules_take_two_functions(tmp_path: Path) -> None:
    module, data = Foreign(), foreign_data()
    callback = Predictions(logits_fn=foreign_logits, label_fn=lambda batch: batch[1], datasets=["iris"])
    trainer(tmp_path, callback).test(module, DataLoader(data, 4))
    found = read_predictions(tmp_path / "test" / "predictions.parquet")
    answers = found.datasets["iris"]
    assert found.method == "Foreign"
    assert torch.allclose(answers.probs, module.net(data.tensors[0]).double().softmax(-1))
    assert torch.equal(answers.label, data.tensors[1])
    assert list(answers.example_id) == [str(row) for row in range(10)]
    trainer(tmp_path, Predictions(tmp_path / "unlabelled", logits_fn=callback.logits_fn)).test(
        module, DataLoader(data, 4)
    )
    answers = read_predictions(tmp_path / "unlabelled" / "predictions.parquet").datasets["test"]
    assert (answers.label == UNKNOWN).all()


def test_the_callbacks_on_the_prediction_path_name_the_method(tmp_path: Path) -> None:
    class Sharper(L.Callback):
        def on_test_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
            path = prediction_path(pl_module, foreign_logits)
            path.claim("Swag", lambda batch: Predictive.from_logits(pl_module.net(batch[0]).expand(3, -1, -1)))
            path.append("Temperature", lambda predictive: predictive.tempered(0.5))

    module, data = Foreign(), foreign_data()
    trainer(tmp_path, Sharper(), Predictions()).test(module, DataLoader(data, 4))
    found = read_predictions(tmp_path / "test" / "predictions.parquet")
    assert found.method == "Foreign+swag+temperature"
    assert found.datasets["test"].n_members == 3
    assert torch.allclose(found.datasets["test"].probs, (2 * module.net(data.tensors[0]).double()).softmax(-1))


def test_foreign_modules_without_functions_are_told(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="logits_fn"):
        trainer(tmp_path, Predictions()).test(Foreign(), DataLoader(foreign_data(), 4))


def _test(root: Path, options: dict[str, Any]) -> None:
    trainer(root, Predictions(), Report(plots=False), **options).test(Module(), Data())


def test_two_processes_agree_with_one(tmp_path: Path) -> None:
    """23 questions do not halve: the distributed sampler gives one to both processes."""
    alone, together = tmp_path / "alone", tmp_path / "together"
    _test(alone, {})
    on_processes(2, _test, together, {"strategy": "ddp", "devices": 2})
    for name in ("predictions.parquet", "metrics.json"):
        assert (alone / "test" / name).read_bytes() == (together / "test" / name).read_bytes()


def test_two_processes_need_to_be_told_the_rows() -> None:
    pair = SimpleNamespace(world_size=2, global_rank=1)
    data, module = foreign_data(), Foreign()
    callback = Predictions(logits_fn=foreign_logits)
    callback.names = ["test"]
    with pytest.raises(UsageError, match="2 processes share the questions; give Predictions an id_fn"):
        callback.on_test_batch_end(pair, module, None, data[:4], 0)
    callback = Predictions(logits_fn=foreign_logits, id_fn=lambda batch: batch[2])
    callback.names = ["test"]
    callback.on_test_batch_end(pair, module, None, data[6:], 0)
    assert callback._collected._batches[0].rows.tolist() == [6, 7, 8, 9]


def foreign_logits(module: Any, batch: Any) -> torch.Tensor:
    return module.net(batch[0])
