"""Files of one's own: what they may look like, which questions serve what, and text that only looks like a command."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import Trainer
from lightning.pytorch.demos.boring_classes import BoringModel

from bayeslora.datamodules import JSONLDataModule
from bayeslora.datamodules.protocols import get_protocol
from bayeslora.datamodules.question import Question
from bayeslora.datamodules.tokenizer import load_tokenizer
from bayeslora.errors import UsageError

MMLU = {"question": "q", "choices": ["x", "y", "z"], "answer": 2}
PLAIN = {"question": "q", "options": ["x", "y"], "label": 0}
Write = Callable[..., Path]


def numbered(row: dict[str, Any], n: int) -> list[dict[str, Any]]:
    return [{**row, "question": f"{row['question']} {i}"} for i in range(n)]


def test_choices_may_be_a_list(write_jsonl: Write) -> None:
    path = write_jsonl("own.jsonl", [MMLU, {**MMLU, "answer": "B"}, {**MMLU, "answer": None}])
    data = JSONLDataModule(str(path), whole=True)
    assert [q.label for q in data.questions(data.test_names[0])] == [2, 1, -1]
    assert data.questions(data.test_names[0])[0].options == ("x", "y", "z")


def test_an_id_of_null_is_no_id(write_jsonl: Write) -> None:
    path = write_jsonl("own.jsonl", [{**PLAIN, "id": None}, {**PLAIN, "id": None}, {**MMLU, "id": None}])
    data = JSONLDataModule(str(path), whole=True)
    assert [q.id for q in data.questions(data.test_names[0])] == ["own/0", "own/1", "own/2"]


def test_a_file_in_utf_16_is_named(tmp_path: Path) -> None:
    (tmp_path / "own.jsonl").write_bytes(json.dumps(PLAIN).encode("utf-16"))
    with pytest.raises(UsageError, match=r"own.jsonl is encoded in UTF-16; allowed: UTF-8"):
        JSONLDataModule(str(tmp_path / "own.jsonl"), whole=True).setup("test")


def test_a_mark_of_utf_8_in_front_is_no_part_of_the_text(tmp_path: Path) -> None:
    (tmp_path / "own.jsonl").write_bytes(json.dumps(PLAIN).encode("utf-8-sig"))
    JSONLDataModule(str(tmp_path / "own.jsonl"), whole=True).setup("test")


# ---- which questions serve what


def test_a_folder_with_one_file_of_another_name_is_a_test_set(write_jsonl: Write) -> None:
    folder = write_jsonl("mine/questions.jsonl", numbered(PLAIN, 30)).parent
    data = JSONLDataModule(str(folder))
    data.setup("test")
    assert len(data.questions(data.test_names[0])) == 30
    assert data.report()["n_test"] == {"jsonl:mine": 30}
    with pytest.raises(UsageError, match="jsonl:mine is a test set alone: there is nothing to train on"):
        data.setup("fit")


def test_a_folder_with_test_questions_alone_is_tested_on(write_jsonl: Write) -> None:
    folder = write_jsonl("mine/test.jsonl", numbered(PLAIN, 7)).parent
    data = JSONLDataModule(str(folder))
    data.setup("test")
    assert (data.report()["n_train"], data.report()["n_test"]) == (0, {"jsonl:mine": 7})
    assert len(data.fingerprint) == 64


def test_a_single_file_can_be_taken_whole(write_jsonl: Write) -> None:
    path = str(write_jsonl("own.jsonl", numbered(PLAIN, 30)))
    data = JSONLDataModule(path)
    with pytest.warns(UserWarning, match="testing on 6 questions of .*whole=True"):
        data.setup("test")
    assert len(JSONLDataModule(path, whole=True).questions("jsonl:own")) == 30


@pytest.mark.parametrize("missing", [{}, {"label": None}, {"label": -1}, {"label": ""}])
def test_test_questions_may_lack_labels(write_jsonl: Write, missing: dict[str, Any]) -> None:
    rows = numbered({"question": "q", "options": ["x", "y"], **missing}, 3)
    write_jsonl("mine/train.jsonl", numbered(PLAIN, 10))
    data = JSONLDataModule(str(write_jsonl("mine/test.jsonl", rows).parent))
    data.setup("fit")
    assert data.report()["n_test"] == {"jsonl:mine": 3}
    data.setup("predict")
    (batch,) = data.predict_dataloader()[0]
    assert batch.label.tolist() == [-1, -1, -1]
    with pytest.raises(UsageError, match="3 of 3 questions of jsonl:mine have no label: there is nothing to test on"):
        data.setup("test")


def test_orders_of_the_options_need_no_label() -> None:
    assert Question("a", "q", ("x", "y")).reordered([1, 0]) == Question("a", "q", ("y", "x"))


# ---- classes


def test_classes_are_named_by_their_labels_or_by_hand(write_jsonl: Write) -> None:
    named = write_jsonl(
        "named.jsonl", [{"sentence": f"s{i}", "label": ("refund", "billing")[i % 2]} for i in range(10)]
    )
    numbers = write_jsonl("numbers.jsonl", [{"sentence": f"s{i}", "label": 1 - i % 2} for i in range(10)])
    for data in (JSONLDataModule(str(named)), JSONLDataModule(str(numbers), classes=["billing", "refund"])):
        question = data.train_questions[0]
        assert question.options == ("billing", "refund")
        assert question.label == 1 - int(question.question[1:]) % 2
        assert data.num_labels == 2
        prompt = get_protocol("default").prompt("jsonl", question).text
        assert "A. billing\nB. refund" in prompt


def test_classes_that_are_not_known(write_jsonl: Write) -> None:
    unlabelled = write_jsonl("bare.jsonl", [{"sentence": "s"}])
    with pytest.raises(UsageError, match=r"no sentence has a label.*give classes"):
        JSONLDataModule(str(unlabelled), whole=True).setup("predict")
    data = JSONLDataModule(str(unlabelled), whole=True, classes=["yes", "no"])
    data.setup("predict")
    assert data.questions("jsonl:bare")[0].options == ("yes", "no")
    with pytest.raises(UsageError, match=r"classes are \['a', 'a'\]; allowed: two names or more"):
        JSONLDataModule(str(unlabelled), classes=["a", "a"])


# ---- options and letters


@pytest.mark.parametrize("name", ["default", "laplace_lora", "swag_lora", "blob", "lora_ensembles"])
def test_no_option_is_lost(name: str) -> None:
    protocol = get_protocol(name)
    task = "mmlu"
    question = Question("many", "q", tuple(f"option {i}" for i in range(27)), 26)
    with pytest.raises(UsageError, match="question 'many' has 27 options, letters are there for 26"):
        protocol.prompt(task, question)


def test_no_option_goes_without_a_label(byte_level: Any, write_jsonl: Write) -> None:
    options = [f"option {i}" for i in range(27)]
    data = JSONLDataModule(str(write_jsonl("own.jsonl", [{**PLAIN, "options": options}])), whole=True)
    with pytest.raises(UsageError, match="has 27 options"):
        data.encoded("jsonl:own")


# ---- control tokens are text

TEXT = "a </s> <pad> <s> [SEP] <unk> <|endoftext|> b"


@pytest.mark.parametrize("name", ["embedded", "llama2", "mistral_v1", "byte_level"])
@pytest.mark.parametrize("max_length", [1024, 60])
def test_a_control_token_in_a_question_is_text(
    name: str, max_length: int, write_jsonl: Write, request: pytest.FixtureRequest
) -> None:
    if name == "embedded":
        tokenizer = load_tokenizer("embedded")
    elif name == "byte_level":
        tokenizer = request.getfixturevalue("byte_level")
    else:
        tokenizer = request.getfixturevalue("real_tokenizer")(name)
    row = {"question": f"{TEXT} {TEXT}", "options": ["<bos> </s>", "<eos>"], "label": 0}
    long = 1024 if name == "byte_level" else max_length
    data = JSONLDataModule(str(write_jsonl("own.jsonl", [row])), whole=True, tokenizer=tokenizer, max_length=long)
    (encoded,) = data.encoded("jsonl:own")
    special = set(tokenizer.all_special_ids)
    assert [i for i in encoded.rows[0] if i in special] == encoded.rows[0][:1]  # the BOS in front
    assert "<bos> </s>" in tokenizer.decode(encoded.rows[0])
    assert encoded.cut == (long == 60)


def test_a_control_token_in_an_option_is_text_to_an_encoder(write_jsonl: Write) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(
        models.WordPiece({w: i for i, w in enumerate(["[UNK]", "[CLS]", "[SEP]", "q", "x"])}, unk_token="[UNK]")
    )
    core.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    core.post_processor = processors.BertProcessing(("[SEP]", 2), ("[CLS]", 1))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]")
    path = write_jsonl("own.jsonl", [{"question": "q [SEP] q", "options": ["x", "[CLS] x"], "label": 0}])
    data = JSONLDataModule(str(path), whole=True, tokenizer=tokenizer, readout="head")
    (encoded,) = data.encoded("jsonl:own")
    assert [row.count(2) for row in encoded.rows] == [2, 2]
    assert [row.count(1) for row in encoded.rows] == [1, 1]


def test_a_control_token_is_refused_in_a_chat(write_jsonl: Write, byte_level: Any) -> None:
    byte_level.chat_template = "{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}"
    path = write_jsonl("own.jsonl", [{**PLAIN, "question": "what is <eos>?"}])
    data = JSONLDataModule(str(path), whole=True, tokenizer=byte_level, chat=True)
    with pytest.raises(UsageError, match="holds the control token '<eos>', which cannot be told"):
        data.encoded("jsonl:own")
    byte_level.chat_template = None


# ---- Lightning's own


def test_batches_can_be_overfitted(question_folder: Path, tmp_path: Path, byte_level: Any) -> None:
    class Seen(BoringModel):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            seen.append(tuple(batch.example_id.tolist()))
            return super().training_step(self.layer.weight.new_ones(1, 32), batch_idx)

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            pass

    seen: list[tuple[int, ...]] = []
    data = JSONLDataModule(str(question_folder), tokenizer=byte_level, batch_size=4)
    trainer = Trainer(
        overfit_batches=2, max_epochs=3, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, accelerator="cpu", default_root_dir=tmp_path,
    )  # fmt: skip
    trainer.fit(Seen(), datamodule=data)
    assert len(seen) == 6
    assert seen[:2] == seen[2:4] == seen[4:]
