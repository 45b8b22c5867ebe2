"""Batches as models get them: padded on the right side, absent options masked, rows assigned to questions."""

from pathlib import Path
from typing import Any

import pytest
import torch

from bayeslora.datamodules import JSONLDataModule, SyntheticDataModule
from bayeslora.types import AnswerBatch


@pytest.fixture
def paired() -> Any:
    """A tokenizer of words that joins pairs as BERT's does, with segment ids, and pads on the right."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "sun", "moon", "river", "stone", "force", "light", "heat", "plant"]
    words += ["animal", "water", "energy", "metal"]
    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    core.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    names = ["input_ids", "token_type_ids", "attention_mask"]
    return PreTrainedTokenizerFast(tokenizer_object=core, pad_token="[PAD]", unk_token="[UNK]", model_input_names=names)


def test_padding_changes_no_row(question_folder: Path, byte_level: Any) -> None:
    data = JSONLDataModule(str(question_folder), tokenizer=byte_level, batch_size=8)
    encoded, widths = data.encoded("train"), set()
    for batch in data.train_dataloader():
        assert len(batch) == len(batch.input_ids)
        assert torch.equal(batch.example_of_row, torch.arange(len(batch)))
        assert not batch.option_of_row.any()
        widths.add(batch.answer_mask.shape[1])
        for i, row in enumerate(batch.example_id.tolist()):
            real = batch.attention_mask[i].bool()
            assert batch.input_ids[i][real].tolist() == encoded[row].rows[0]
            assert not real[: -encoded[row].length].any()
            assert batch.answer_ids[i][batch.answer_mask[i]].tolist() == list(encoded[row].answers)
            assert batch.label[i] == data.train_questions[row].label
        assert batch.input_ids.shape[1] == batch.attention_mask.sum(-1).max()
    assert len(widths) > 1 or widths == {5}


def test_options_are_rows_of_their_own_for_an_encoder(question_folder: Path, paired: Any) -> None:
    data = JSONLDataModule(str(question_folder), tokenizer=paired, readout="head", batch_size=4)
    for batch in data.train_dataloader():
        questions = [data.train_questions[row] for row in batch.example_id.tolist()]
        assert batch.answer_mask.sum(-1).tolist() == [len(q.options) for q in questions]
        assert len(batch.input_ids) == sum(len(q.options) for q in questions)
        rows = zip(batch.example_of_row.tolist(), batch.option_of_row.tolist(), strict=True)
        for row, (example, option) in enumerate(rows):
            question = questions[example]
            expected = paired(question.question, question.options[option])
            length = len(expected["input_ids"])
            assert batch.input_ids[row, :length].tolist() == expected["input_ids"]
            assert batch.token_type_ids is not None
            assert batch.token_type_ids[row, :length].tolist() == expected["token_type_ids"]
            assert batch.attention_mask[row].tolist() == [1] * length + [0] * (batch.input_ids.shape[1] - length)


def test_an_encoder_row_loses_the_front_of_its_question(question_folder: Path, paired: Any) -> None:
    data = JSONLDataModule(str(question_folder), tokenizer=paired, readout="head", max_length=10)
    whole = JSONLDataModule(str(question_folder), tokenizer=paired, readout="head")
    cuts = 0
    for cut, full in zip(data.encoded("train"), whole.encoded("train"), strict=True):
        for short, long in zip(cut.rows, full.rows, strict=True):
            assert short == (long if len(long) <= 10 else [long[0], *long[1 + len(long) - 10 :]])
        cuts += cut.cut
    assert 0 < cuts == sum(item.length > 10 for item in whole.encoded("train"))


def test_several_workers_give_the_same_batches(question_folder: Path, byte_level: Any) -> None:
    def ids(workers: int) -> list[list[int]]:
        data = JSONLDataModule(str(question_folder), tokenizer=byte_level, batch_size=4, num_workers=workers)
        return [batch.example_id.tolist() for batch in data.train_dataloader()]

    assert ids(0) == ids(2)


def test_a_pass_leaves_the_global_generator_alone(question_folder: Path, byte_level: Any) -> None:
    data = JSONLDataModule(str(question_folder), tokenizer=byte_level, batch_size=4)
    before = torch.get_rng_state()
    list(data.train_dataloader())
    assert torch.equal(torch.get_rng_state(), before)


def test_a_batch_moves_whole(question_folder: Path, byte_level: Any) -> None:
    batch = next(iter(JSONLDataModule(str(question_folder), tokenizer=byte_level).train_dataloader()))
    assert isinstance(batch, AnswerBatch)
    moved = batch.to("meta")
    assert moved.input_ids.device.type == moved.answer_mask.device.type == "meta"
    assert moved.dataset == batch.dataset


def test_the_synthetic_benchmark_knows_the_truth(byte_level: Any) -> None:
    data = SyntheticDataModule(tokenizer=byte_level, labels=50, ood=["synthetic:shifted", "synthetic:ood"])
    assert data.test_names == ["synthetic", "synthetic:shifted", "synthetic:ood"]
    sizes = [len(data.questions(name)) for name in data.test_names]
    assert sizes[0] >= 5000
    assert min(sizes[1:]) >= 2000
    for name in data.test_names:
        for question in data.questions(name)[:100]:
            assert question.true_probs is not None
            assert len(question.true_probs) == len(question.options)
            assert sum(question.true_probs) == pytest.approx(1)
    other = SyntheticDataModule(tokenizer=byte_level, labels=50, seed=1)
    assert other.questions("synthetic") == data.questions("synthetic")
    assert other.train_questions != data.train_questions
