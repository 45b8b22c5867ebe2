"""Encoders with a classification head, from the command line to the metrics: options as rows, and sentence pairs."""

import json
import random
from pathlib import Path

import pytest
import torch

from bayeslora.cli import main
from bayeslora.models.pretrained import resolve_pretrained
from bayeslora.posteriors.state import load_posterior
from tests.helpers.command_line import FAST
from tests.helpers.runs import questions


@pytest.fixture(scope="module")
def encoders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Tiny random encoders with a real tokenizer, by kind."""
    from transformers import AutoTokenizer, BertConfig, BertModel, RobertaConfig, RobertaModel

    folder = tmp_path_factory.mktemp("encoders")
    tokenizer = AutoTokenizer.from_pretrained(resolve_pretrained("embedded"))
    tokenizer.padding_side = "right"
    sizes = {"vocab_size": len(tokenizer), "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    sizes |= {"num_attention_heads": 2, "max_position_embeddings": 300, "pad_token_id": tokenizer.pad_token_id}
    torch.manual_seed(0)
    models = {"bert": BertModel(BertConfig(**sizes)), "roberta": RobertaModel(RobertaConfig(**sizes))}
    for name, model in models.items():
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    return {name: str(folder / name) for name in models}


def pairs(folder: Path) -> Path:
    """Sentence pairs with one of three labels."""
    folder.mkdir()
    draw, vocabulary = random.Random(0), ["red", "green", "blue", "round", "square"]
    for split, n in (("train", 60), ("validation", 20), ("test", 30)):
        words = [[" ".join(draw.choices(vocabulary, k=4)) for _ in "ab"] for _ in range(n)]
        rows = [
            {"id": f"{split}-{i}", "sentence1": a, "sentence2": b, "label": i % 3} for i, (a, b) in enumerate(words)
        ]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.mark.parametrize("kind", ["bert", "roberta"])
@pytest.mark.parametrize("task", ["options", "pairs"])
def test_fit_and_test(kind: str, task: str, encoders: dict[str, str], tmp_path: Path) -> None:
    data = questions(tmp_path / "data") if task == "options" else pairs(tmp_path / "data")
    model = ["--model=LoRAModule", f"--model.backbone.pretrained={encoders[kind]}", "--model.backbone.readout=head"]
    model += [
        "--model.lora.target_modules=[query,value]",
        "--model.lora.dropout=0.1",
        "--model.samples=4",
        "--model.optimisation.learning_rate=0.01",
    ]
    model += ["--model.backbone.num_labels=3"] if task == "pairs" else []
    arguments = [*model, "--data=JSONLDataModule", f"--data.path={data}", f"--trainer.default_root_dir={tmp_path}"]
    assert main(["fit", *arguments, *FAST]) == 0
    assert main(["test", *arguments, *FAST]) == 0
    metrics = json.loads((tmp_path / "test" / "metrics.json").read_text())
    (found,) = metrics["datasets"].values()
    assert found["n"] == (40 if task == "options" else 30)
    assert metrics["n_members"] == 4
    assert found["epistemic"] > 0
    adapter = tmp_path / "posterior" / "adapter_model.safetensors"
    from safetensors.torch import load_file

    assert any("classifier" in name for name in load_file(adapter))


@pytest.mark.parametrize("kind, structure", [("bert", "full"), ("roberta", "kfac"), ("roberta", "diag")])
def test_laplace_on_sentence_pairs(kind: str, structure: str, encoders: dict[str, str], tmp_path: Path) -> None:
    """The paper's RoBERTa runs in small: LoRA on query and value, a head for sentence pairs, Laplace after training."""
    model = ["--model=LoRAModule", f"--model.backbone.pretrained={encoders[kind]}", "--model.backbone.readout=head"]
    model += ["--model.lora.target_modules=[query,value]", "--model.backbone.num_labels=3"]
    model += ["--model.optimisation.learning_rate=0.01"]
    data = ["--data=JSONLDataModule", f"--data.path={pairs(tmp_path / 'data')}"]
    laplace = ["--trainer.callbacks=bayeslora.callbacks.Laplace", f"--trainer.callbacks.structure={structure}"]
    arguments = [*model, *data, *laplace, f"--trainer.default_root_dir={tmp_path}"]
    assert main(["fit", *arguments, *FAST]) == 0
    assert main(["test", *arguments, *FAST]) == 0
    metrics = json.loads((tmp_path / "test" / "metrics.json").read_text())
    (found,) = metrics["datasets"].values()
    assert found["n"] == 30
    assert found["epistemic"] > 0
    posterior = load_posterior(tmp_path / "posterior")
    assert posterior.family == {"full": "laplace_full", "kfac": "laplace_kronecker"}.get(structure, "laplace_diagonal")
    variances = posterior.sample(50, torch.Generator().manual_seed(0))
    moving = [name for name, draws in variances.items() if draws.float().var(0).max() > 0]
    assert any("lora_A" in name for name in moving)
    assert any("classifier" in name for name in moving)


def test_laplace_on_an_ensemble_of_encoders(encoders: dict[str, str], tmp_path: Path) -> None:
    """An encoder that scores options has a head with one output: its bias is shorter than a stack is high."""
    model = ["--model=LoRAEnsemble", "--model.members=3", f"--model.backbone.pretrained={encoders['bert']}"]
    model += ["--model.backbone.readout=head", "--model.lora.target_modules=[query,value]"]
    data = ["--data=JSONLDataModule", f"--data.path={questions(tmp_path / 'data')}"]
    laplace = ["--trainer.callbacks=bayeslora.callbacks.Laplace", "--trainer.callbacks.prior_mean=initial"]
    laplace += ["--trainer.callbacks.samples=4"]
    arguments = [*model, *data, *laplace, f"--trainer.default_root_dir={tmp_path}"]
    assert main(["fit", *arguments, *FAST]) == 0
    assert main(["test", *arguments, *FAST]) == 0
    assert json.loads((tmp_path / "test" / "metrics.json").read_text())["n_members"] == 12
