"""Rows for encoders: an option each, or a sentence pair each."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from bayeslora.datamodules import JSONLDataModule
from bayeslora.errors import UsageError

from .conftest import WORDS


@pytest.fixture(scope="module", params=["bert", "roberta"])
def encoder_tokenizer(request: pytest.FixtureRequest) -> Any:
    """A tokenizer of whole words that joins pairs as BERT's does, with segment ids, or as RoBERTa's does, without."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(special + WORDS)}, unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    bert = request.param == "bert"
    core.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1" if bert else "[CLS] $A [SEP] [SEP] $B [SEP]",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    names = ["input_ids", "attention_mask", *(["token_type_ids"] if bert else [])]
    return PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]",
        model_input_names=names, padding_side="right",
    )  # fmt: skip


def test_an_option_is_a_row_beside_its_question(question_folder: Path, encoder_tokenizer: Any) -> None:
    data = JSONLDataModule(path=str(question_folder), tokenizer=encoder_tokenizer, readout="head", batch_size=4)
    questions = data.questions(data.test_names[0])
    seen: list[int] = []
    for batch in data.test_dataloader()[0]:
        counts = [len(questions[i].options) for i in batch.example_id.tolist()]
        assert len(batch.input_ids) == sum(counts)
        assert batch.option_of_row.tolist() == [option for count in counts for option in range(count)]
        assert batch.answer_mask.sum(-1).tolist() == counts
        assert not batch.answer_ids.any()
        for row, (example, option) in enumerate(zip(batch.example_of_row, batch.option_of_row, strict=True)):
            question = questions[int(batch.example_id[example])]
            mask = batch.attention_mask[row].bool()
            expected = encoder_tokenizer(question.question, question.options[option])
            assert batch.input_ids[row][mask].tolist() == expected["input_ids"]
            assert not batch.input_ids[row][~mask].any()
            assert mask.tolist() == sorted(mask.tolist(), reverse=True)  # padded on the right
            if "token_type_ids" in expected:
                assert batch.token_type_ids is not None
                assert batch.token_type_ids[row][mask].tolist() == expected["token_type_ids"]
            else:
                assert batch.token_type_ids is None
        seen += batch.example_id.tolist()
    assert sorted(seen) == list(range(11))
    assert data.num_labels is None


def test_a_long_row_loses_the_front_of_its_question(question_folder: Path, encoder_tokenizer: Any) -> None:
    whole = JSONLDataModule(path=str(question_folder), tokenizer=encoder_tokenizer, readout="head")
    short = JSONLDataModule(path=str(question_folder), tokenizer=encoder_tokenizer, readout="head", max_length=12)
    assert any(item.cut for item in short.encoded("train"))
    for before, after in zip(whole.encoded("train"), short.encoded("train"), strict=True):
        assert after.cut == (before.length > 12)
        for long, row in zip(before.rows, after.rows, strict=True):
            assert len(row) == min(len(long), 12)
            assert row[0] == long[0]
            assert row[1:] == long[1:][len(long) - len(row) :]
    nothing = JSONLDataModule(path=str(question_folder), tokenizer=encoder_tokenizer, readout="head", max_length=2)
    with pytest.raises(UsageError, match=r"question 'train0' needs \d tokens for an option alone, max_length is 2"):
        nothing.encoded("train")


def pairs(n: int, classes: int, split: str) -> list[dict[str, Any]]:
    rows = [{"id": f"{split}{i}", "label": i % classes} for i in range(n)]
    return [
        {**row, "sentence1": " ".join(WORDS[: 2 + i % 5]), "sentence2": " ".join(WORDS[i % 7 : 9])}
        for i, row in enumerate(rows)
    ]


@pytest.fixture
def pair_folder(write_jsonl: Callable[..., Path]) -> Path:
    """Sentence pairs of three classes, of which the test file happens to have two."""
    write_jsonl("pairs/train.jsonl", pairs(20, 3, "train"))
    return write_jsonl("pairs/test.jsonl", pairs(9, 2, "test")).parent


def test_a_sentence_pair_is_one_row(pair_folder: Path, encoder_tokenizer: Any) -> None:
    data = JSONLDataModule(path=str(pair_folder), tokenizer=encoder_tokenizer, readout="head", batch_size=4)
    assert data.num_labels == 3
    assert (len(data.train_questions), len(data.val_questions)) == (16, 4)
    for batch in data.test_dataloader()[0]:
        assert batch.answer_mask.shape == (len(batch), 3)
        assert batch.answer_mask.all()
        assert len(batch.input_ids) == len(batch)
        assert torch.equal(batch.example_of_row, torch.arange(len(batch)))
        assert not batch.option_of_row.any()
        for row, i in enumerate(batch.example_id.tolist()):
            source = pairs(9, 2, "test")[i]
            expected = encoder_tokenizer(source["sentence1"], source["sentence2"])["input_ids"]
            assert batch.input_ids[row][batch.attention_mask[row].bool()].tolist() == expected
            assert int(batch.label[row]) == source["label"]


def test_single_sentences(write_jsonl: Callable[..., Path], encoder_tokenizer: Any) -> None:
    rows = [{"id": str(i), "sentence": " ".join(WORDS[: 1 + i % 3]), "label": i % 2} for i in range(10)]
    path = write_jsonl("single.jsonl", rows)
    data = JSONLDataModule(path=str(path), tokenizer=encoder_tokenizer, readout="head")
    assert data.num_labels == 2
    question, encoded = data.train_questions[0], data.encoded("train")[0]
    assert encoded.rows == (encoder_tokenizer(question.question)["input_ids"],)


@pytest.mark.parametrize("label", [-2, 1.5, "yes", True, 10**9])
def test_a_label_that_is_no_class(write_jsonl: Callable[..., Path], label: Any) -> None:
    path = write_jsonl("pairs.jsonl", [*pairs(4, 2, "x"), {**pairs(1, 2, "y")[0], "label": label}])
    with pytest.raises(UsageError, match=r"pairs.jsonl, line 5: label .* is not a class; allowed: "):
        JSONLDataModule(path=str(path)).setup("fit")
