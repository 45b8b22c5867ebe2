"""A predictor made of a run folder alone says what the run's own test said."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import lightning as L
import pytest
import torch

from bayeslora import (
    SWAG,
    TFB,
    BLoBModule,
    CLoRAModule,
    Laplace,
    LoRAEnsemble,
    LoRAModule,
    Predictions,
    SavedPosteriors,
    Temperature,
)
from bayeslora.callbacks.run_folder import RunFolder
from bayeslora.datamodules import SyntheticDataModule
from bayeslora.errors import UsageError
from bayeslora.lightning_modules.bare_base import BareBase
from bayeslora.lightning_modules.multiple_choice import MultipleChoiceModule
from bayeslora.models.loading import Backbone, LoRA
from bayeslora.results.prediction_file import read_predictions
from bayeslora.serving.keep import KeepForServing
from bayeslora.serving.kept import load
from bayeslora.serving.predictor import Predictor

ATOL = 5e-6  # what another batch changes in float32 (docs/serving.md)
BATCH = 8
SMALL = LoRA(r=2, target_modules=["q_proj", "v_proj"])
METHODS: dict[str, tuple[Callable[..., MultipleChoiceModule], Callable[[Path], Sequence[L.Callback]]]] = {
    "mle": (LoRAModule, lambda root: ()),
    "mc_dropout": (lambda **own: LoRAModule(samples=3, **own), lambda root: ()),
    "base": (BareBase, lambda root: ()),
    "temperature": (LoRAModule, lambda root: [Temperature()]),
    "swag": (LoRAModule, lambda root: [SWAG(start=0, unit="step", samples=3)]),
    "swag_linearised": (LoRAModule, lambda root: [SWAG(start=0, unit="step", predict="linearised")]),
    "swag_dropout": (LoRAModule, lambda root: [SWAG(start=0, unit="step", samples=3, dropout=True)]),
    "laplace": (LoRAModule, lambda root: [Laplace(precision=1.0)]),
    "laplace_temperature": (LoRAModule, lambda root: [Laplace("kfac", 1.0, temperature=1.7), Temperature()]),
    "laplace_refit": (LoRAModule, lambda root: [Laplace(precision=1.0, mean="refit")]),
    "ensemble": (lambda **own: LoRAEnsemble(members=[0, 3], **own), lambda root: ()),
    "multiswag": (lambda **own: LoRAEnsemble(members=2, **own), lambda root: [SWAG(start=0, unit="step", samples=2)]),
    "multilaplace": (lambda **own: LoRAEnsemble(members=2, **own), lambda root: [Laplace(precision=1.0, samples=5)]),
    "blob": (BLoBModule, lambda root: ()),
    "c_lora": (CLoRAModule, lambda root: ()),
    "tfb": (LoRAModule, lambda root: [TFB(anchors=8, iterations=1)]),
}


def trained(root: Path, name: str, quantization: str = "none") -> L.Trainer:
    """A run of two steps that was tested."""
    make, callbacks = METHODS[name]
    dropout = 0.1 if "dropout" in name else 0.0
    lora = LoRA(r=2, dropout=dropout, target_modules=["q_proj", "v_proj"])
    module = make(backbone=Backbone(quantization=quantization), lora=lora)
    data = SyntheticDataModule(labels=20, batch_size=8, eval_batch_size=BATCH, max_test=12, ood=["synthetic:ood"])
    own = [*callbacks(root), RunFolder(), Predictions(), KeepForServing()]
    trainer = L.Trainer(
        max_steps=2, accelerator="cpu", default_root_dir=root, callbacks=own, logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, inference_mode=False,
        num_sanity_val_steps=0, limit_val_batches=0,
    )  # fmt: skip
    if name != "base":
        trainer.fit(module, datamodule=data)
    trainer.test(module, datamodule=data, verbose=False)
    return trainer


def agree(root: Path, data: SyntheticDataModule) -> Predictor:
    """Ask the test's questions again in the test's batches, and compare with what the test has written."""
    predictor = Predictor.from_run(root)
    own = read_predictions(root / "test" / "predictions.parquet").datasets["synthetic"]
    questions = data.questions("synthetic")
    for start in range(0, len(questions), BATCH):
        batch = slice(start, start + BATCH)
        found = predictor.predict(predictor.prepare(questions[batch]))
        torch.testing.assert_close(found.probs, own.probs[batch].double(), atol=1e-6, rtol=0)
        torch.testing.assert_close(found.total, own.total[batch], atol=1e-5, rtol=0)
        torch.testing.assert_close(found.epistemic, own.epistemic[batch], atol=1e-5, rtol=0)
        assert found.key is not None
        assert own.key is not None
        assert torch.equal(found.key, own.key[batch])
    return predictor


@pytest.mark.parametrize("name", METHODS)
def test_answers_are_those_of_the_test(name: str, tmp_path: Path) -> None:
    trainer = trained(tmp_path, name)
    data = trainer.datamodule  # type: ignore[attr-defined]
    predictor = agree(tmp_path, data)
    questions = data.questions("synthetic")[:5]
    together = predictor(questions)
    for question, answer in zip(questions, together, strict=True):
        alone = predictor(question)
        assert alone.probs == pytest.approx(answer.probs, abs=ATOL)
        assert alone.epistemic == pytest.approx(answer.epistemic, abs=1e-5)


@pytest.mark.parametrize("quantization", ["4bit", "8bit"])
def test_answers_of_a_quantised_base_in_the_same_batches(quantization: str, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    trainer = trained(tmp_path, "swag", quantization)
    agree(tmp_path, trainer.datamodule)  # type: ignore[attr-defined]


def test_a_mixture_of_finished_runs(tmp_path: Path) -> None:
    for seed in "01":
        trained(tmp_path / seed, "mle")
    data = SyntheticDataModule(labels=20, batch_size=8, eval_batch_size=BATCH, max_test=12)
    mixture = SavedPosteriors([str(tmp_path / seed / "posterior") for seed in "01"])
    trainer = L.Trainer(
        accelerator="cpu", default_root_dir=tmp_path / "both", callbacks=[mixture, Predictions(), KeepForServing()],
        logger=False, enable_progress_bar=False, enable_checkpointing=False,
    )  # fmt: skip
    trainer.test(LoRAModule(lora=SMALL), datamodule=data, verbose=False)
    agree(tmp_path / "both", data)


ASK = """
import json, sys
from bayeslora import Predictor
predictor = Predictor.from_run(sys.argv[1], device="cpu")
answers = predictor([json.loads(line) for line in sys.stdin])
print(json.dumps([answer.to_dict() for answer in answers]))
"""


def test_a_fresh_process_needs_no_training_data(own: tuple[Path, list[dict]]) -> None:
    run, lines = own
    asked = "\n".join(json.dumps({"question": line["question"]}) for line in lines)  # the run knows the options
    done = subprocess.run(
        [sys.executable, "-c", ASK, str(run)], input=asked, capture_output=True, text=True, check=True
    )
    answers = json.loads(done.stdout.splitlines()[-1])
    kept = next(iter(read_predictions(run / "test" / "predictions.parquet").datasets.values()))
    for answer, probs in zip(answers, kept.probs.tolist(), strict=True):
        assert answer["probs"] == pytest.approx(probs, abs=ATOL)
        assert answer["abstain"] is True
        assert "threshold" in answer["reason"]
        assert answer["prediction_set"]


def test_what_is_no_question_is_said_in_one_line(own: tuple[Path, list[dict]]) -> None:
    predictor = Predictor.from_run(own[0])
    wrong = {
        "has no text": {"options": ["a", "b"]},
        "1 option": {"question": "?", "options": ["a"]},
        "same option twice": {"question": "?", "options": ["a", "a"]},
        "2 or more": {"question": "?", "options": []},
        "allowed: text": {"question": "?", "options": ["a", 3]},
        "letters are there for": {"question": "?", "options": [str(i) for i in range(10_000)]},
    }
    for message, given in wrong.items():
        with pytest.raises(UsageError, match=message) as refused:
            predictor(given)
        assert "\n" not in str(refused.value)
    assert predictor([]) == []


def test_a_column_without_a_value_is_a_column_that_is_not_there(own: tuple[Path, list[dict]]) -> None:
    """As in a parquet file, whose rows all have the same columns."""
    predictor = Predictor.from_run(own[0])
    row = {"id": None, "question": "Is 4 even?", "options": None, "choices": None, "context": None, "sentence": None}
    assert predictor.question(row) == predictor.question("Is 4 even?")


def test_a_long_question_says_what_it_lost(own: tuple[Path, list[dict]]) -> None:
    predictor = Predictor.from_run(own[0])
    assert predictor("Is 2 even? " * 500).cut
    assert not predictor("Is 2 even?").cut


def test_runs_that_cannot_answer_say_why(own: tuple[Path, list[dict]], tmp_path: Path) -> None:
    def refused(folder: Path, message: str) -> None:
        with pytest.raises(UsageError, match=message):
            Predictor.from_run(folder)

    refused(tmp_path / "nothing", "there is no such folder")
    (tmp_path / "fitted" / "posterior").mkdir(parents=True)
    refused(tmp_path / "fitted", "was not tested")
    (tmp_path / "old" / "test").mkdir(parents=True)
    refused(tmp_path / "old", "tested by an earlier version")
    copy = tmp_path / "run"
    shutil.copytree(own[0], copy)
    record = copy / "serving" / "serving.json"
    record.write_text(record.read_text().replace('"base": "', '"base": "0'))
    refused(copy, "damaged")
    shutil.copytree(own[0], copy, dirs_exist_ok=True)
    weights = copy / "serving" / "weights.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    refused(copy, "damaged or missing")


def test_another_base_is_refused(own: tuple[Path, list[dict]], llama: str) -> None:
    kept = load(own[0])
    changed = replace(kept, arguments={**kept.arguments, "backbone": {"pretrained": llama}})
    with pytest.raises(UsageError, match="is not the one that the run was made with"):
        Predictor(changed)
    with pytest.raises(UsageError, match="not of this package"):
        Predictor(replace(kept, module="os.system"))


def test_a_refusal_of_a_posterior_is_not_called_damage(
    own: tuple[Path, list[dict]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(file: Path) -> None:
        raise UsageError("of another schema")

    monkeypatch.setattr("bayeslora.serving.kept.load_rule", refuse)
    with pytest.raises(UsageError, match=r"^of another schema$"):
        load(own[0])
