"""Data that meet a model take its tokenizer and read-out, and refuse what it cannot read."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.demos.boring_classes import BoringModel

from bayeslora import Backbone, JSONLDataModule, LoRAModule, SyntheticDataModule
from bayeslora.errors import UsageError
from bayeslora.models.limits import Limits, limits_of
from tests.helpers.models import save_llama

ROW = {"question": "What is hot?", "options": ["sun", "moon", "stone"], "label": 0}


@pytest.fixture
def llama_with_tokenizer(tmp_path: Path, byte_level: Any) -> str:
    folder = save_llama(tmp_path / "llama", vocab_size=len(byte_level))
    byte_level.save_pretrained(folder)
    return folder


@pytest.fixture
def roberta_with_tokenizer(tmp_path: Path, byte_level: Any) -> str:
    """A RoBERTa that has learned 60 positions, with a tokenizer."""
    from transformers import RobertaConfig, RobertaModel

    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = RobertaConfig(vocab_size=len(byte_level), max_position_embeddings=62, **sizes)
    RobertaModel(config).save_pretrained(tmp_path / "roberta")
    byte_level.save_pretrained(tmp_path / "roberta")
    return str(tmp_path / "roberta")


@pytest.fixture
def own(write_jsonl: Callable[..., Path]) -> str:
    return str(write_jsonl("own.jsonl", [{**ROW, "question": f"What is hot? {i}"} for i in range(10)]))


def trainer(folder: Path) -> Trainer:
    return Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False, max_epochs=1,
        enable_model_summary=False, default_root_dir=folder,
    )  # fmt: skip


def test_data_take_tokenizer_and_readout_of_their_model(
    own: str, roberta_with_tokenizer: str, llama_with_tokenizer: str, tmp_path: Path
) -> None:
    encoder = LoRAModule(Backbone(pretrained=roberta_with_tokenizer, readout="head"))
    data = JSONLDataModule(own, whole=True)
    assert data.tokenizer.name_or_path != roberta_with_tokenizer  # nothing met: the package's own
    data.encoded("jsonl:own")
    trainer(tmp_path).test(encoder, datamodule=data, verbose=False)
    assert (data.readout, data.tokenizer.name_or_path) == ("head", roberta_with_tokenizer)
    assert len(data.encoded("jsonl:own")[0].rows) == 3
    assert data.max_length == 60  # the positions RoBERTa has learned
    trainer(tmp_path).test(LoRAModule(Backbone(pretrained=llama_with_tokenizer)), datamodule=data, verbose=False)
    assert (data.readout, data.tokenizer.name_or_path) == ("label_token", llama_with_tokenizer)
    assert data.max_length == 1024


def test_the_embedded_base_needs_nothing_said(tmp_path: Path) -> None:
    data = SyntheticDataModule(labels=10, max_test=3)
    trainer(tmp_path).test(LoRAModule(), datamodule=data, verbose=False)
    assert data.readout == "label_token"


@pytest.mark.parametrize("stage", ["fit", "validate", "test", "predict"])
def test_what_was_given_and_does_not_fit_is_refused(
    stage: str, own: str, roberta_with_tokenizer: str, tmp_path: Path
) -> None:
    def run(**given: Any) -> None:
        module = LoRAModule(Backbone(pretrained=roberta_with_tokenizer, readout="head"))
        getattr(trainer(tmp_path), stage)(module, datamodule=JSONLDataModule(own, **given))

    with pytest.raises(UsageError, match="the data's readout is 'label_token', the model's 'head'; leave the data's"):
        run(readout="label_token")
    with pytest.raises(UsageError, match=r"the data's tokenizer \(.*\) is not that of the model '.*roberta'"):
        run(tokenizer="embedded")


@pytest.mark.parametrize("given, classes", [(None, True), (3, True), (2, False)])
def test_a_head_has_as_many_outputs_as_the_data_have_classes(
    given: int | None,
    classes: bool,
    write_jsonl: Callable[..., Path],
    own: str,
    roberta_with_tokenizer: str,
    tmp_path: Path,
) -> None:
    rows = [{"sentence": f"sun {i}", "label": ("good", "bad")[i % 2]} for i in range(10)]
    data = JSONLDataModule(str(write_jsonl("classes.jsonl", rows)) if classes else own)
    module = LoRAModule(Backbone(pretrained=roberta_with_tokenizer, readout="head", num_labels=given))
    wanted = "2 classes; give backbone.num_labels 2" if classes else "options to compare.*give backbone.num_labels null"
    with pytest.raises(UsageError, match=f"backbone.num_labels is {given}, but the data have {wanted}"):
        trainer(tmp_path).test(module, datamodule=data)


def test_rows_beyond_the_positions_or_tokens_of_a_model_are_refused_before_it_is_loaded(
    own: str, roberta_with_tokenizer: str, llama: str, byte_level: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LoRAModule, "configure_model", lambda self: pytest.fail("the model was loaded"))
    long = str(tmp_path / "long.jsonl")
    Path(long).write_text('{"question": "%s", "options": ["a", "b"], "label": 0}' % ("sun " * 100))
    module = LoRAModule(Backbone(pretrained=roberta_with_tokenizer, readout="head"))
    data = JSONLDataModule(long, whole=True, max_length=100)
    with pytest.raises(UsageError, match=r"jsonl:long has \d+ tokens, .* has learned 60 positions; give max_length 60"):
        trainer(tmp_path).test(module, datamodule=data)
    with pytest.raises(UsageError, match=r"train has the token \d+, the model .*llama' knows tokens 0 to 95"):
        trainer(tmp_path).fit(
            LoRAModule(Backbone(pretrained=llama)), datamodule=JSONLDataModule(own, tokenizer=byte_level)
        )


def test_other_modules_change_nothing(own: str, byte_level: Any, tmp_path: Path) -> None:
    class Other(BoringModel):
        def test_step(self, batch: Any, batch_idx: int) -> None:
            assert batch.input_ids.shape[0] == len(batch)

    data = JSONLDataModule(own, whole=True, tokenizer=byte_level)
    trainer(tmp_path).test(Other(), datamodule=data, verbose=False)
    assert data.readout == "label_token"


def test_limits_of_bases(tmp_path: Path, llama: str, roberta: str) -> None:
    import transformers as hf

    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 50}
    bases = {
        "bert": hf.BertModel(hf.BertConfig(**small, intermediate_size=16, max_position_embeddings=40)),
        "gpt2": hf.GPT2Model(hf.GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=50, n_positions=40)),
        "opt": hf.OPTModel(hf.OPTConfig(**small, ffn_dim=16, max_position_embeddings=40, word_embed_proj_dim=16)),
    }
    for name, model in bases.items():
        model.save_pretrained(tmp_path / name)
        assert limits_of(str(tmp_path / name)) == Limits(50, 40, name), name
        model.eval()
        ids = torch.ones(1, 40, dtype=torch.long)
        model(input_ids=ids, attention_mask=ids)
        with pytest.raises((IndexError, RuntimeError)):
            model(input_ids=torch.ones(1, 41, dtype=torch.long), attention_mask=torch.ones(1, 41, dtype=torch.long))
    assert limits_of(llama) == Limits(96, None, "llama")
    assert limits_of(roberta) == Limits(96, 78, "roberta")
    hf.MistralConfig(sliding_window=8).save_pretrained(tmp_path / "mistral")
    assert limits_of(str(tmp_path / "mistral"))[1:] == (None, "mistral", 8)
    with pytest.raises(UsageError, match="cannot find the model"):
        limits_of("no/such-model")


def test_further_sentences_have_the_classes_of_the_head(
    roberta_with_tokenizer: str, write_jsonl: Callable[..., Path], tmp_path: Path
) -> None:
    """A test set that shows a part of the classes, or no label at all, names none of its own."""
    classes = ("bad", "fair", "good")
    rows = [{"sentence": f"moon {i}", "label": classes[i % 3]} for i in range(20)]
    own = write_jsonl("own.jsonl", rows)
    part = write_jsonl("part.jsonl", [{"sentence": "sun", "label": "good"}, {"sentence": "sun 2", "label": "bad"}])
    none = write_jsonl("none.jsonl", [{"sentence": "stone"}])
    ood = [f"jsonl:{part}", f"jsonl:{none}"]
    module = LoRAModule(Backbone(roberta_with_tokenizer, readout="head", num_labels=3))
    data = JSONLDataModule(path=str(own), ood=ood, max_length=60)
    found = trainer(tmp_path).predict(module, datamodule=data)
    assert [batch.log_probs.shape[-1] for batches in found for batch in batches] == [3, 3, 3]
    assert [question.label for question in data.questions(ood[0])] == [2, 0]


@pytest.mark.parametrize("sentences", [True, False])
def test_sentences_and_questions_are_not_answered_by_one_head(
    sentences: bool, roberta_with_tokenizer: str, write_jsonl: Callable[..., Path], tmp_path: Path
) -> None:
    rows = [{"sentence": f"moon {i}", "label": i % 3} for i in range(20)]
    files = [write_jsonl("sentences.jsonl", rows), write_jsonl("questions.jsonl", [ROW])]
    own, other = files if sentences else files[::-1]
    module = LoRAModule(Backbone(roberta_with_tokenizer, readout="head", num_labels=3 if sentences else None))
    data = JSONLDataModule(path=str(own), ood=[f"jsonl:{other}"], max_length=60)
    with pytest.raises(UsageError, match=r"ood has jsonl:.*, and the head answers"):
        trainer(tmp_path).predict(module, datamodule=data)
