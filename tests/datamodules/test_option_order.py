"""Options in other orders, in training and averaged over in prediction."""

from pathlib import Path
from typing import Any

import pytest
import torch

from bayeslora.datamodules import JSONLDataModule
from bayeslora.datamodules.option_order import merge_orders, orders
from bayeslora.types import AnswerBatch, Predictive


@pytest.mark.parametrize("n_options", [2, 3, 4, 5])
@pytest.mark.parametrize("blocks", [1, 2, 3])
def test_each_option_stands_at_each_place_equally_often(n_options: int, blocks: int) -> None:
    found = orders(n_options, blocks * n_options)
    assert found[0] == tuple(range(n_options))
    assert all(sorted(order) == list(range(n_options)) for order in found)
    for place in range(n_options):
        assert sorted(order[place] for order in found) == sorted(list(range(n_options)) * blocks)


def test_fewer_orders_are_the_first_of_more() -> None:
    assert orders(4, 3) == orders(4, 10)[:3]
    assert len(orders(4, 3)) == 3


def loader_of(folder: Path, tokenizer: Any, **options: Any) -> tuple[JSONLDataModule, list[AnswerBatch]]:
    data = JSONLDataModule(path=str(folder), tokenizer=tokenizer, batch_size=4, eval_batch_size=8, **options)
    return data, list(data.test_dataloader()[0])


def shown(batch: AnswerBatch, row: int, tokenizer: Any) -> list[str]:
    """The options in the order the prompt shows them."""
    text = tokenizer.decode(batch.input_ids[row][batch.attention_mask[row].bool()])
    return [line.split(". ", 1)[1] for line in text.split("\n")[1:-1]]


def test_orders_of_a_question_follow_one_another_and_say_what_stands_where(
    question_folder: Path, byte_level: Any
) -> None:
    data, batches = loader_of(question_folder, byte_level, permutations=4)
    questions = data.questions(data.test_names[0])
    seen = []
    for batch in batches:
        assert batch.option_order is not None
        assert len(batch) <= 8  # questions times orders
        assert batch.example_id.tolist() == [i for i in batch.example_id[::4].tolist() for _ in range(4)]
        seen += batch.example_id[::4].tolist()
        for row, i in enumerate(batch.example_id.tolist()):
            question = questions[i]
            options = [question.options[j] for j in batch.option_order[row].tolist() if j < len(question.options)]
            assert shown(batch, row, byte_level) == options
            assert options[int(batch.label[row])] == question.options[question.label]
    assert sorted(seen) == list(range(11))


def biased_logits(batch: AnswerBatch, data: JSONLDataModule, place_bias: torch.Tensor) -> torch.Tensor:
    """A model that likes each option for its text, and the places A, B, .. for themselves."""
    questions = data.questions(data.test_names[0])
    logits = torch.full(batch.answer_mask.shape, -torch.inf)
    for row, i in enumerate(batch.example_id.tolist()):
        order = range(batch.answer_mask.shape[1]) if batch.option_order is None else batch.option_order[row].tolist()
        for place, source in enumerate(order):
            if source < len(questions[i].options):
                logits[row, place] = len(questions[i].options[source]) / 3 + place_bias[place]
    return torch.stack([logits, 2 * logits])


def test_merged_predictions_are_in_the_source_order(question_folder: Path, byte_level: Any) -> None:
    data, permuted = loader_of(question_folder, byte_level, permutations=3)
    _, alone = loader_of(question_folder, byte_level)
    reference: dict[int, torch.Tensor] = {}
    for batch in alone:
        predictive = Predictive.from_logits(biased_logits(batch, data, torch.zeros(5)))
        same_batch, same = merge_orders(batch, predictive)
        assert same_batch is batch
        assert same is predictive
        reference |= dict(zip(batch.example_id.tolist(), predictive.probs, strict=True))
    for batch in permuted:
        merged, predictive = merge_orders(batch, Predictive.from_logits(biased_logits(batch, data, torch.zeros(5))))
        questions = [data.questions(data.test_names[0])[i] for i in merged.example_id.tolist()]
        assert merged.label.tolist() == [question.label for question in questions]
        assert merged.answer_mask.sum(-1).tolist() == [len(question.options) for question in questions]
        assert merged.option_order is None
        assert len(merged.input_ids) == len(merged) == len(batch) // 3
        for i, probs in zip(merged.example_id.tolist(), predictive.probs, strict=True):
            width = len(data.questions(data.test_names[0])[i].options)
            torch.testing.assert_close(probs[:width], reference[i][:width])
            assert (probs[width:] == 0).all()


def test_averaging_over_all_shifts_removes_a_preference_for_places(question_folder: Path, byte_level: Any) -> None:
    data, batches = loader_of(question_folder, byte_level, permutations=5)
    bias = torch.tensor([3.0, 0.0, 1.0, -1.0, -2.0])
    for batch in batches:
        five = batch.answer_mask.sum(-1) == 5
        logits = biased_logits(batch, data, bias) - biased_logits(batch, data, torch.zeros(5))
        _, predictive = merge_orders(batch, Predictive.from_logits(logits))
        uniform = predictive.probs[five[::5]]
        torch.testing.assert_close(uniform, torch.full_like(uniform, 0.2))


def test_each_member_is_averaged_by_itself(question_folder: Path, byte_level: Any) -> None:
    data, batches = loader_of(question_folder, byte_level, permutations=3)
    logits = biased_logits(batches[0], data, torch.arange(5.0))
    both = merge_orders(batches[0], Predictive.from_logits(logits))[1]
    for member in range(2):
        alone = merge_orders(batches[0], Predictive.from_logits(logits[member : member + 1]))[1]
        torch.testing.assert_close(both.log_probs[member], alone.log_probs[0])


def test_training_options_are_shuffled_anew_in_each_epoch(question_folder: Path, byte_level: Any) -> None:
    data = JSONLDataModule(path=str(question_folder), tokenizer=byte_level, batch_size=4, shuffle_options=True)

    def epoch(number: int) -> dict[int, list[str]]:
        loader: Any = data.train_dataloader()
        loader.batch_sampler.set_epoch(number)
        found = {}
        for batch in loader:
            assert batch.option_order is None
            for row, i in enumerate(batch.example_id.tolist()):
                question = data.train_questions[i]
                found[i] = shown(batch, row, byte_level)
                assert sorted(found[i]) == sorted(question.options)
                assert found[i][int(batch.label[row])] == question.options[question.label]
        return found

    first, second = epoch(0), epoch(1)
    assert first == epoch(0)
    assert first != second
    firsts = [data.train_questions[i].options.index(options[0]) for i, options in first.items()]
    assert len(set(firsts)) >= 3
    assert [next(iter(data.val_dataloader())).option_order] == [None]


def test_worker_processes_give_the_same_batches(question_folder: Path, byte_level: Any) -> None:
    def batches(workers: int) -> list[AnswerBatch]:
        data = JSONLDataModule(
            path=str(question_folder), tokenizer=byte_level, batch_size=8, shuffle_options=True, num_workers=workers
        )
        return list(data.train_dataloader())  # type: ignore[arg-type]

    for alone, worker in zip(batches(0), batches(1), strict=True):
        assert torch.equal(alone.input_ids, worker.input_ids)
        assert torch.equal(alone.label, worker.label)


def test_loading_leaves_the_global_random_state_alone(question_folder: Path, byte_level: Any) -> None:
    data = JSONLDataModule(path=str(question_folder), tokenizer=byte_level, shuffle_options=True, permutations=3)
    before = torch.get_rng_state()
    list(data.train_dataloader())
    list(data.test_dataloader()[0])
    assert torch.equal(torch.get_rng_state(), before)
