"""What every validation logs: the numbers of all validation questions together, under names that can be monitored."""

from pathlib import Path

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint

from bayeslora import LoRAEnsemble, LoRAModule, SyntheticDataModule
from bayeslora.lightning_modules.multiple_choice import MultipleChoiceModule
from bayeslora.metrics import scores
from bayeslora.types import Predictive

NAMES = ("val/nll", "val/accuracy", "val/ece", "val/brier", "val/entropy")


def _data() -> SyntheticDataModule:
    return SyntheticDataModule(labels=40, batch_size=16, eval_batch_size=3)  # eight questions, the last batch smaller


def _trainer(root: Path, *callbacks: L.Callback) -> L.Trainer:
    return L.Trainer(
        default_root_dir=root,
        max_epochs=2,
        callbacks=list(callbacks),
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


@pytest.mark.parametrize("module", [LoRAModule(), LoRAEnsemble(members=2)])
def test_numbers_are_those_of_all_questions_together(
    module: MultipleChoiceModule, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[Predictive, torch.Tensor]] = []
    log = type(module)._log_validation

    def remembers(self: MultipleChoiceModule, predictive: Predictive, batch: object) -> None:
        seen.append((predictive, batch.label))
        log(self, predictive, batch)

    monkeypatch.setattr(type(module), "_log_validation", remembers)
    trainer = _trainer(tmp_path, ModelCheckpoint(tmp_path, monitor="val/ece", filename="calibrated"))
    trainer.validate(module, _data(), verbose=False)
    probs, label = (torch.cat(parts) for parts in zip(*((p.probs, y) for p, y in seen), strict=True))
    entropy = torch.cat([predictive.total for predictive, _ in seen])
    assert len(label) == 8
    found = {name: trainer.callback_metrics[name].item() for name in NAMES}
    gap = scores.correct(probs, label).double() - probs.amax(-1)  # within a bin of one question it is the bin's gap
    bins = torch.ceil(probs.amax(-1) * 15)
    ece = sum(gap[bins == b].sum().abs() for b in bins.unique()) / len(label)
    wanted = [scores.nll(probs, label).mean(), scores.correct(probs, label).double().mean(), ece]
    wanted += [scores.brier(probs, label).mean(), entropy.mean()]
    assert list(found.values()) == pytest.approx([float(value) for value in wanted], abs=1e-6)


def test_a_checkpoint_and_a_stop_can_watch_any_of_them(tmp_path: Path) -> None:
    best = ModelCheckpoint(tmp_path, monitor="val/ece", filename="calibrated")
    stops = [EarlyStopping(monitor=name, patience=9) for name in ("val/brier", "val/entropy")]
    _trainer(tmp_path, best, *stops).fit(LoRAModule(), _data())
    assert (tmp_path / "calibrated.ckpt").exists()
    assert best.best_model_score is not None
    assert 0 <= best.best_model_score <= 1
