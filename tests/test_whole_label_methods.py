"""Every method with labels of several tokens: trained, tested and asked again, against labels scored one by one."""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch

from bayeslora import (
    SWAG,
    TFB,
    BLoBModule,
    CLoRAModule,
    IVONModule,
    JSONLDataModule,
    KeepForServing,
    Laplace,
    LoRA,
    LoRAEnsemble,
    LoRAModule,
    Predictions,
    Predictor,
    ScalaBLModule,
    Temperature,
)
from bayeslora.callbacks.run_folder import RunFolder
from bayeslora.callbacks.vocabulary import VocabularyUncertainty
from bayeslora.datamodules.protocols import OwnProtocol
from bayeslora.errors import UsageError
from bayeslora.lightning_modules.multiple_choice import MultipleChoiceModule
from bayeslora.models.answer_model import AnswerModel
from bayeslora.models.loading import Backbone
from bayeslora.results.prediction_file import read_predictions
from bayeslora.types import AnswerBatch, AnswerOutput, Samples

PROTOCOL = OwnProtocol(template="{question}\nIs it even?", words={"even": "yes", "odd": "no", "?": "no idea"}, end="\n")
Made = tuple[Callable[..., MultipleChoiceModule], Callable[[], Sequence[L.Callback]]]
BY_WEIGHTS: dict[str, Made] = {
    "mle": (LoRAModule, list),
    "temperature": (LoRAModule, lambda: [Temperature()]),
    "swag": (LoRAModule, lambda: [SWAG(start=0, unit="step", samples=3)]),
    "laplace": (LoRAModule, lambda: [Laplace(precision=1.0, dtype="float64")]),
    "laplace_refit": (LoRAModule, lambda: [Laplace(precision=1.0, dtype="float64", mean="refit")]),
    "laplace_kfac": (LoRAModule, lambda: [Laplace("kfac", precision=1.0, dtype="float64")]),
    "ensemble": (lambda **own: LoRAEnsemble(members=[0, 3], **own), list),
    "multiswag": (lambda **own: LoRAEnsemble(members=2, **own), lambda: [SWAG(start=0, unit="step", samples=2)]),
    "tfb": (LoRAModule, lambda: [TFB(anchors=8, iterations=1)]),
    "scalabl": (ScalaBLModule, list),
    "ivon": (IVONModule, list),
}
BY_NOISE: dict[str, Made] = {
    "mc_dropout": (lambda **own: LoRAModule(samples=3, **own), list),
    "blob": (BLoBModule, list),
    "blob_flipout": (lambda **own: BLoBModule(predict="flipout", **own), list),
    "c_lora": (CLoRAModule, list),
    "c_lora_sequence": (lambda **own: CLoRAModule(context="sequence", **own), list),
}


@pytest.fixture(scope="module")
def questions(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("whole") / "numbers"
    folder.mkdir()
    options = ["even", "odd", "?"]
    for split, (start, count) in {"train": (0, 16), "validation": (16, 6), "test": (22, 8)}.items():
        rows = [{"question": f"number {i * 37}", "options": options[: 2 + i % 2], "label": i % 2}
                for i in range(start, start + count)]  # fmt: skip
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(folder)


def run_of(root: Path, made: Made, questions: str, dropout: float = 0.0) -> tuple[MultipleChoiceModule, L.Trainer]:
    """A run of three steps on all linear layers, the output layer too, that was tested."""
    make, callbacks = made
    module = make(lora=LoRA(r=2, dropout=dropout, target_modules=["q_proj", "v_proj", "lm_head"]))
    data = JSONLDataModule(path=questions, protocol=PROTOCOL, batch_size=4, eval_batch_size=4)
    trainer = L.Trainer(
        max_steps=3, accelerator="cpu", default_root_dir=root, logger=False, enable_checkpointing=False,
        callbacks=[*callbacks(), RunFolder(), Predictions(), KeepForServing()], enable_progress_bar=False,
        enable_model_summary=False, inference_mode=False, num_sanity_val_steps=0, limit_val_batches=0,
    )  # fmt: skip
    trainer.fit(module, datamodule=data)
    trainer.test(module, datamodule=data, verbose=False)
    return module, trainer


def predicted(root: Path) -> Any:
    return read_predictions(root / "test" / "predictions.parquet").datasets["jsonl:numbers"]


FORWARD = AnswerModel.forward


def one_by_one(
    self: AnswerModel, batch: AnswerBatch, samples: Samples | None = None, vocabulary: str = "none", chunk: Any = None
) -> AnswerOutput:
    """Scores of whole labels, each token of each label by a pass of its own in which it is a label of one token."""
    whole = batch.whole_labels
    assert whole is not None
    columns = []
    for option in range(whole.ids.shape[1]):
        total = torch.zeros(())
        for step in range(whole.ids.shape[2]):
            ids = whole.ids[:, option]
            rows = [
                torch.cat([tokens[mask.bool()], own[:step]])
                for tokens, mask, own in zip(batch.input_ids, batch.prompt_mask, ids, strict=True)
            ]
            width = max(map(len, rows))
            token = AnswerBatch(
                input_ids=torch.stack([torch.nn.functional.pad(row, (width - len(row), 0)) for row in rows]),
                attention_mask=torch.stack(
                    [torch.nn.functional.pad(torch.ones_like(row), (width - len(row), 0)) for row in rows]
                ),
                example_of_row=batch.example_of_row,
                option_of_row=batch.option_of_row,
                answer_ids=ids[:, step : step + 1],
                answer_mask=torch.ones_like(ids[:, :1], dtype=torch.bool),
                label=batch.label,
                example_id=batch.example_id,
                dataset=batch.dataset,
            )
            output = FORWARD(self, token, samples, "logsumexp", chunk)
            assert output.logsumexp is not None
            total = total + whole.weights[:, option, step] * (output.logits[..., 0] - output.logsumexp)
        columns.append(total)
    scores = torch.stack(columns, -1).masked_fill(~batch.answer_mask, -torch.inf)
    return AnswerOutput(scores, torch.zeros_like(scores[..., 0]) if vocabulary == "logsumexp" else None)


def each_one_by_one(
    self: AnswerModel, batches: Sequence[AnswerBatch], samples: Samples, vocabulary: str = "none"
) -> AnswerOutput:
    parts = [one_by_one(self, batch, samples[i : i + 1], vocabulary) for i, batch in enumerate(batches)]
    width = max(part.logits.shape[-1] for part in parts)
    pads = [
        torch.nn.functional.pad(part.logits, (0, width - part.logits.shape[-1]), value=-torch.inf) for part in parts
    ]
    return AnswerOutput(torch.cat(pads))


@pytest.mark.parametrize("name", BY_WEIGHTS)
def test_training_and_prediction_are_those_of_labels_one_by_one(
    name: str, tmp_path: Path, questions: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, _ = run_of(tmp_path / "packed", BY_WEIGHTS[name], questions)
    monkeypatch.setattr(AnswerModel, "forward", one_by_one)
    monkeypatch.setattr(AnswerModel, "forward_each", each_one_by_one)
    reference, _ = run_of(tmp_path / "apart", BY_WEIGHTS[name], questions)
    for parameter, own in reference.trainable().items():
        torch.testing.assert_close(module.trainable()[parameter], own, atol=1e-5, rtol=1e-4)
    found, expected = predicted(tmp_path / "packed"), predicted(tmp_path / "apart")
    torch.testing.assert_close(found.probs, expected.probs, atol=2e-5, rtol=0)


@pytest.mark.parametrize("name", [*BY_WEIGHTS, *BY_NOISE])
def test_a_run_is_asked_again(name: str, tmp_path: Path, questions: str) -> None:
    made = (BY_WEIGHTS | BY_NOISE)[name]
    _, trainer = run_of(tmp_path, made, questions, dropout=0.1 if name == "mc_dropout" else 0.0)
    asked = trainer.datamodule.questions("jsonl:numbers")  # type: ignore[attr-defined]
    predictor = Predictor.from_run(tmp_path, device="cpu")
    found = predictor.predict(predictor.prepare(asked))
    own = predicted(tmp_path)
    torch.testing.assert_close(found.probs, own.probs.double(), atol=1e-6, rtol=0)
    tolerance = 5e-6 if name.startswith("laplace") else 1e-6  # long products of Jacobians round as larger numbers
    alone = [predictor(question).probs for question in asked[:3]]
    for probs, row in zip(alone, own.probs, strict=False):
        assert probs == pytest.approx(row[: len(probs)].tolist(), abs=tolerance)
    turned = predictor(asked[1].reordered([1, 0, 2])).probs
    closeness = 1e-3 if name.startswith("laplace") else 1e-5  # a Gaussian's nodes turn with the contrasts
    assert (turned[1], turned[0], turned[2]) == pytest.approx(alone[1], abs=closeness)


REFUSED: dict[str, tuple[str, Callable[[], L.Callback] | None, dict[str, Any], dict[str, Any]]] = {
    "vocabulary": ("VocabularyUncertainty needs labels of one token", VocabularyUncertainty, {}, {}),
    "token_factors": ("kfac_expand needs labels of one token", lambda: Laplace("kfac_expand"), {}, {}),
    "released_factors": ("release needs labels of one token", lambda: Laplace("release"), {}, {}),
    "scores": ("divided by tokens are no probabilities", None, {}, {"support": "full_vocab"}),
    "kind": ("which a gpt2 with attention 'sdpa' is not known to take", None, {"model_type": "gpt2"}, {}),
    "window": (
        "tokens, and attention of this model reaches 8",
        None,
        {"model_type": "mistral", "sliding_window": 8},
        {},
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_carry_them_says_so_before_a_model_is_loaded(name: str, tmp_path: Path, questions: str) -> None:
    message, callback, config, options = REFUSED[name]
    if config:  # a model of which there is nothing but its configuration
        (tmp_path / "config.json").write_text(json.dumps({**config, "vocab_size": 50_000}))
        options = {**options, "backbone": Backbone(str(tmp_path))}
    module = LoRAModule(**options)
    protocol = replace(PROTOCOL, normalise="tokens") if name == "scores" else PROTOCOL
    data = JSONLDataModule(path=questions, protocol=protocol, **({"tokenizer": "embedded"} if config else {}))
    trainer = L.Trainer(
        max_steps=1, accelerator="cpu", default_root_dir=tmp_path, logger=False, enable_checkpointing=False,
        callbacks=[] if callback is None else [callback()], enable_progress_bar=False,
    )  # fmt: skip
    with pytest.raises(UsageError, match=message):
        trainer.fit(module, datamodule=data)
    assert module.model is None
