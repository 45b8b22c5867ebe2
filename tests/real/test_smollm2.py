"""A real pretrained causal model, SmolLM2-135M-Instruct: the answers of plain transformers and peft, and every method.

Its knowledge is small, so nothing here asserts an accuracy; what is asserted is that the package and the libraries it
stands on compute the same numbers, and that training lowers the loss.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from bayeslora import Backbone, LoRA
from bayeslora.cli import main
from bayeslora.datamodules import ARCDataModule
from bayeslora.models.answer_model import AnswerModel
from bayeslora.models.loading import load_answer_model
from bayeslora.types import AnswerBatch

pytestmark = pytest.mark.real
CONFIGS = Path(__file__).parents[2] / "bayeslora" / "configs"
TARGETS = ["q_proj", "v_proj"]
QUESTIONS = {"none": 32, "4bit": 16, "8bit": 16}


def _batches(smollm2: str, data_dir: str, questions: int, **options: Any) -> list[AnswerBatch]:
    data = ARCDataModule(data_dir=data_dir, tokenizer=smollm2, max_test=questions, eval_batch_size=8, **options)
    data.setup("test")
    return list(data.test_dataloader()[0])


def _plain(smollm2: str, quantization: str, ours: AnswerModel) -> Any:
    """The same network by transformers and peft alone, with our LoRA weights."""
    from peft import LoraConfig, get_peft_model, set_peft_model_state_dict
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    quantised = {
        "none": None,
        "8bit": BitsAndBytesConfig(load_in_8bit=True),
        "4bit": BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.float32,
        ),
    }[quantization]
    base = AutoModelForCausalLM.from_pretrained(smollm2, quantization_config=quantised, dtype=torch.float32)
    network = get_peft_model(base, LoraConfig(r=4, lora_alpha=8, target_modules=TARGETS))
    set_peft_model_state_dict(network, {name: value.detach() for name, value in ours.trainable().items()})
    for module in network.modules():
        module.training = "bit" in type(module).__name__.lower()  # as the package keeps quantised layers
    return network


def _logits(network: Any, batch: AnswerBatch) -> Tensor:
    positions = (batch.attention_mask.cumsum(-1) - 1).clamp(min=0)
    out = network(input_ids=batch.input_ids, attention_mask=batch.attention_mask, position_ids=positions)
    return out.logits[:, -1].gather(-1, batch.answer_ids).masked_fill(~batch.answer_mask, -torch.inf)


@pytest.mark.parametrize("quantization", list(QUESTIONS))
def test_answer_logits_are_those_of_transformers_and_peft(smollm2: str, data_dir: str, quantization: str) -> None:
    backbone = Backbone(pretrained=smollm2, quantization=quantization, dtype="float32")
    model = load_answer_model(backbone, LoRA(r=4, alpha=8, target_modules=TARGETS), seed=0)
    with torch.no_grad():  # B is zero at the start; an update that does something is compared
        for name, parameter in model.trainable().items():
            if "lora_B" in name:
                parameter.normal_(std=0.02, generator=torch.Generator().manual_seed(1))
    plain = _plain(smollm2, quantization, model)
    with torch.no_grad():
        for batch in _batches(smollm2, data_dir, QUESTIONS[quantization]):
            torch.testing.assert_close(model(batch).logits, _logits(plain, batch), atol=1e-5, rtol=1e-6)


def test_a_chat_template_is_the_tokenizers_own(smollm2: str, data_dir: str) -> None:
    from transformers import AutoTokenizer

    (batch,) = _batches(smollm2, data_dir, 4, chat=True)
    text = AutoTokenizer.from_pretrained(smollm2).decode(batch.input_ids[0][batch.attention_mask[0].bool()])
    assert text.startswith("<|im_start|>system\nYou are a helpful AI assistant named SmolLM")
    assert text.count("<|im_start|>user\n") == 1
    assert text.endswith("<|im_start|>assistant\n")


def _arguments(stage: str, smollm2: str, data_dir: str, root: Path, *overlays: str) -> list[str]:
    files = [CONFIGS / "data" / "arc_easy.yaml", *(CONFIGS / "method" / f"{name}.yaml" for name in overlays)]
    return [
        stage,
        *(part for file in files for part in ("-c", str(file))),
        f"--model.backbone.pretrained={smollm2}",
        f"--model.lora.target_modules=[{','.join(TARGETS)}]",
        f"--data.data_dir={data_dir}",
        "--data.labels=10",
        "--data.max_test=4",
        "--data.batch_size=4",
        "--data.eval_batch_size=4",
        "--data.ood=[]",
        "--trainer.accelerator=cpu",
        "--trainer.max_epochs=2",
        "--trainer.log_every_n_steps=1",
        "--trainer.enable_progress_bar=false",
        "--trainer.enable_model_summary=false",
        f"--trainer.default_root_dir={root}",
    ]


# Overlays of configs/method, and what makes them small enough for two cores.
METHODS = {
    "mle": (("mle", "temperature"), ()),
    "map": (("map",), ()),
    "mc_dropout": (("mc_dropout",), ("--model.samples=2",)),
    "swag": (("swag",), ("--trainer.callbacks.start=0", "--trainer.callbacks.samples=2")),
    "laplace": (("laplace",), ()),
    "laplace_kfac": (("laplace_kfac",), ()),
    "ensemble": (("ensemble",), ("--model.members=2",)),
    "c_lora": (("c_lora",), ("--model.samples=2",)),
    "blob": (("blob",), ("--model.samples=2",)),
    "scalabl": (("scalabl",), ("--model.samples=2",)),
    "ivon": (("ivon",), ("--model.samples=2",)),
    "tfb": (("tfb",), ("--trainer.callbacks.samples=2", "--trainer.callbacks.anchors=4")),
}


@pytest.mark.parametrize("method", list(METHODS))
def test_every_method_fits_and_tests(method: str, smollm2: str, data_dir: str, tmp_path: Path) -> None:
    overlays, options = METHODS[method]
    for stage in ("fit", "test"):
        assert main([*_arguments(stage, smollm2, data_dir, tmp_path, *overlays), *options]) == 0
    (found,) = json.loads((tmp_path / "test" / "metrics.json").read_text())["datasets"].values()
    assert found["n"] == 4
    assert 0 < found["nll"] < 10


def test_training_lowers_the_loss(smollm2: str, data_dir: str, tmp_path: Path) -> None:
    import csv

    fit = _arguments("fit", smollm2, data_dir, tmp_path, "mle")
    assert main([*fit, "--trainer.max_epochs=4", "--model.learning_rate=1e-3"]) == 0
    (metrics,) = (tmp_path / "logs" / "fit").rglob("metrics.csv")
    losses = [float(row["train/loss"]) for row in csv.DictReader(metrics.open()) if row["train/loss"]]
    assert len(losses) == 8
    assert sum(losses[-2:]) < sum(losses[:2]) - 0.2
