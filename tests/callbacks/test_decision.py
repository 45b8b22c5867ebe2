"""The decision rule of a run: fitted behind posterior and temperature, kept, reported, of its own predictions."""

import json
from pathlib import Path

import lightning as L
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from bayeslora.callbacks.decision import Decision
from bayeslora.callbacks.predictions import Predictions
from bayeslora.callbacks.report import Report
from bayeslora.callbacks.temperature import Temperature
from bayeslora.decisions.rule import fit_rule
from bayeslora.decisions.rule_file import load_rule
from bayeslora.errors import UsageError
from bayeslora.results.prediction_file import read_predictions

WEIGHT = 3 * torch.randn(4, 4, generator=torch.Generator().manual_seed(0))


class Questions(L.LightningDataModule):
    """Inputs whose labels are drawn from a linear law; validation, test, and where wanted a calibration part."""

    def __init__(self, calibration: int) -> None:
        super().__init__()
        self.sizes = {"val": 150, "test": 400, "calibration": calibration}

    def loader(self, part: str) -> DataLoader:
        generator = torch.Generator().manual_seed(len(part))
        x = torch.randn(self.sizes[part], 4, generator=generator)
        labels = [torch.multinomial((x @ WEIGHT.T).softmax(-1), 1, generator=generator).squeeze(1)] if len(x) else [x]
        return DataLoader(TensorDataset(x, *labels), batch_size=64)

    def val_dataloader(self) -> DataLoader:
        return self.loader("val")

    def test_dataloader(self) -> DataLoader:
        return self.loader("test")

    def calibration_dataloader(self) -> DataLoader:
        return self.loader("calibration")


class Overconfident(L.LightningModule):
    """Knows the law, and says it three times too surely."""

    method = "mle"

    def __init__(self) -> None:
        super().__init__()
        self.net = torch.nn.Linear(4, 4, bias=False)
        with torch.no_grad():
            self.net.weight.copy_(3 * WEIGHT)

    def test_step(self, batch: list, batch_idx: int) -> None:
        pass


def logits(module: Overconfident, batch: list) -> torch.Tensor:
    return module.net(batch[0])


def label(batch: list) -> torch.Tensor:
    return batch[1]


def report_of(folder: Path, data: Questions, *callbacks: L.Callback) -> Path:
    own = {"logits_fn": logits, "label_fn": label}
    trainer = L.Trainer(
        default_root_dir=folder,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[*callbacks, Temperature(**own), Predictions(**own, overwrite=True), Report(plots=False)],
    )
    trainer.test(Overconfident(), data, verbose=False)
    return folder


def decision(**options: float) -> Decision:
    return Decision(**options, logits_fn=logits, label_fn=label)


def test_it_is_fitted_on_what_the_whole_path_predicts(tmp_path: Path) -> None:
    callback = decision(risk=0.1)
    folder = report_of(tmp_path, Questions(500), callback)  # in front of the temperature, whose end it waits for
    rule = load_rule(folder / "posterior" / "decision.json")
    assert rule == callback.rule == load_rule(folder / "test" / "decision.json")
    assert (rule.method, rule.exact, rule.selection, rule.calibration) == ("mle+temperature", True, 150, 500)
    parts = read_predictions(folder / "posterior" / "calibration.parquet").datasets
    assert rule == fit_rule(parts["validation"], parts["calibration"], "mle+temperature", risk=0.1)
    temperature = json.loads((folder / "posterior" / "temperature.json").read_text())["temperature"]
    assert temperature > 2
    x, _ = Questions(500).calibration_dataloader().dataset.tensors
    expected = (x @ (3 * WEIGHT.T) / temperature).softmax(-1).double()
    assert torch.allclose(parts["calibration"].probs, expected, atol=1e-5)


def test_the_report_says_whether_the_promise_was_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report_of(tmp_path, Questions(500), decision(risk=0.1))
    metrics = json.loads((tmp_path / "test" / "metrics.json").read_text())
    found = metrics["datasets"]["test"]
    rule = load_rule(tmp_path / "test" / "decision.json")
    answers = read_predictions(tmp_path / "test" / "predictions.parquet").datasets["test"]
    decided = rule(answers)
    given = ~decided.abstain
    wrong = decided.choice != answers.label
    assert found["answered_10"] == pytest.approx(given.double().mean().item())
    assert found["answered_10_error"] == pytest.approx(wrong[given].double().mean().item())
    low, high = found["interval_95"]["answered_10_error"]
    assert low < found["answered_10_error"] < high
    assert found["set_lac_size"] == pytest.approx(decided.sets.sum(1).double().mean().item())
    missed = ~decided.sets.gather(1, answers.label[:, None])
    assert found["set_lac_missed"] == pytest.approx(missed.double().mean().item())
    assert metrics["decision"]["datasets"]["test"]["10"]["verdict"] == "kept"
    text = capsys.readouterr().out
    assert "answered at 10 % risk ↑" in text
    assert "error at most 10 % with confidence 90 %" in " ".join(text.split())


def test_without_a_calibration_part_it_is_approximate(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    callback = decision()
    report_of(tmp_path, Questions(0), callback)
    assert not callback.rule.exact
    assert callback.rule.calibration == 150
    text = capsys.readouterr().out
    assert "decisions (approximate)" in text


def test_a_rule_of_an_earlier_test_is_not_that_of_this_one(tmp_path: Path) -> None:
    report_of(tmp_path, Questions(500), decision())
    report_of(tmp_path, Questions(500))
    assert not (tmp_path / "test" / "decision.json").exists()
    assert "decision" not in json.loads((tmp_path / "test" / "metrics.json").read_text())


def test_a_module_without_validation_is_told_so(tmp_path: Path) -> None:
    data = Questions(100)
    data.sizes["val"] = 0
    trainer = L.Trainer(default_root_dir=tmp_path, accelerator="cpu", logger=False, enable_progress_bar=False)
    trainer.callbacks.append(decision())
    with pytest.raises(UsageError, match="Decision has no validation questions"):
        trainer.test(Overconfident(), data, verbose=False)


def test_validation_is_asked_in_as_many_orders_as_the_test(tmp_path: Path) -> None:
    from bayeslora import JSONLDataModule, LoRAModule
    from bayeslora.metrics import scores
    from bayeslora.models.loading import LoRA
    from tests.helpers.runs import questions

    folder = questions(tmp_path / "data")
    (folder / "test.jsonl").write_text((folder / "validation.jsonl").read_text())
    trainer = L.Trainer(
        default_root_dir=tmp_path, accelerator="cpu", logger=False, enable_progress_bar=False,
        callbacks=[Temperature(), Decision(), Predictions()],
    )  # fmt: skip
    data = JSONLDataModule(str(folder), batch_size=8, permutations=2)
    trainer.test(LoRAModule(lora=LoRA(r=2, target_modules=["q_proj"])), data, verbose=False)
    [tested] = read_predictions(tmp_path / "test" / "predictions.parquet").datasets.values()
    found = read_predictions(tmp_path / "posterior" / "calibration.parquet").datasets["validation"]
    assert list(found.example_id) == list(tested.example_id)
    assert torch.allclose(found.probs, tested.probs, atol=1e-6)
    fitted = json.loads((tmp_path / "posterior" / "temperature.json").read_text())
    assert fitted["n"] == len(tested)
    assert fitted["nll_after"] == pytest.approx(float(scores.nll(tested.probs, tested.label).mean()), abs=1e-6)
