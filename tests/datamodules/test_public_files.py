"""The public benchmarks as they are: every published row, its label, its prompt, each once in the batches."""

import json
from pathlib import Path
from typing import Any

import pytest

from bayeslora.datamodules import ARCDataModule, MultipleChoiceDataModule, OpenBookQADataModule

BENCHMARKS = {
    "arc_easy": (lambda **kw: ARCDataModule("ARC-Easy", **kw), "ai2_arc/ARC-Easy", (2251, 570, 2376)),
    "arc_challenge": (lambda **kw: ARCDataModule("ARC-Challenge", **kw), "ai2_arc/ARC-Challenge", (1119, 299, 1172)),
    "obqa": (OpenBookQADataModule, "openbookqa/main", (4957, 500, 500)),
}
ARC_EASY_PROMPT = (
    "Question: Which factor will most likely cause a person to develop a fever?\n"
    "A. a leg muscle relaxing after exercise\n"
    "B. a bacterial population in the bloodstream\n"
    "C. several viral particles on the skin\n"
    "D. carbohydrates being digested in the stomach\n"
    "Answer:"
)
OBQA_PROMPT = (
    "Question: The sun is responsible for\n"
    "A. puppies learning new tricks\n"
    "B. children growing up and getting old\n"
    "C. flowers wilting in a vase\n"
    "D. plants sprouting, blooming and wilting\n"
    "Answer:"
)


def make(name: str, data_dir: str, **arguments: Any) -> MultipleChoiceDataModule:
    return BENCHMARKS[name][0](data_dir=data_dir, **arguments)


def sets(data: MultipleChoiceDataModule) -> dict[str, list[Any]]:
    (test,) = data.test_names
    return {"train": data.train_questions, "validation": data.val_questions, "test": data.questions(test)}


@pytest.mark.parametrize("name", BENCHMARKS)
def test_every_published_row_is_read_with_its_own_label(name: str, data_dir: str) -> None:
    _, folder, counts = BENCHMARKS[name]
    found = sets(make(name, data_dir))
    assert tuple(map(len, found.values())) == counts
    for split, questions in found.items():
        rows = [json.loads(line) for line in (Path(data_dir) / folder / f"{split}.jsonl").open()]
        assert [question.id for question in questions] == [row["id"] for row in rows]
        for row, question in zip(rows, questions, strict=True):
            assert list(question.options) == row["choices"]["text"]
            assert row["choices"]["label"][question.label] == row["answerKey"]


@pytest.mark.parametrize("tokenizer", ["llama2", "mistral_v1"])
@pytest.mark.parametrize("name, prompt", [("arc_easy", ARC_EASY_PROMPT), ("obqa", OBQA_PROMPT)])
def test_golden_prompts(name: str, prompt: str, tokenizer: str, data_dir: str, real_tokenizer: Any) -> None:
    tokens = real_tokenizer(tokenizer)
    data = make(name, data_dir, tokenizer=tokens, labels=30)
    data.setup("fit")
    rows = [row for batch in data.train_dataloader() for row in zip(batch.input_ids, batch.attention_mask, strict=True)]
    shown = {tokens.decode(ids[mask.bool()]) for ids, mask in rows}
    assert len(shown) == len(data.train_questions) == 24
    first = make(name, data_dir, tokenizer=tokens).encoded("train")[0]
    assert first.rows[0] == tokens(prompt)["input_ids"]
    assert tokens.convert_ids_to_tokens(list(first.answers)) == ["▁A", "▁B", "▁C", "▁D"]
    assert all(text.startswith("<s> Question: ") and text.endswith("\nAnswer:") for text in shown)


def test_no_test_question_is_trained_on_but_the_published_duplicates(data_dir: str) -> None:
    overlaps = {name: len(make(name, data_dir, tokenizer=None).report()["in_train_and_test"]) for name in BENCHMARKS}
    assert overlaps == {"arc_easy": 2, "arc_challenge": 0, "obqa": 0}


def test_each_test_question_is_met_once_whatever_its_options(data_dir: str, real_tokenizer: Any) -> None:
    data = make("arc_easy", data_dir, tokenizer=real_tokenizer("llama2"), ood=["arc_challenge"], eval_batch_size=32)
    data.setup("test")
    for name, loader in zip(data.test_names, data.test_dataloader(), strict=True):
        questions, met = data.questions(name), []
        for batch in loader:
            assert batch.dataset == name
            rows = batch.example_id.tolist()
            met += rows
            assert batch.answer_mask.sum(-1).tolist() == [len(questions[row].options) for row in rows]
            assert batch.label.tolist() == [questions[row].label for row in rows]
            assert batch.answer_ids[~batch.answer_mask].count_nonzero() == 0
            assert batch.attention_mask[:, -1].all()  # padded on the left
        assert sorted(met) == list(range(len(questions)))
    assert {len(question.options) for question in data.questions("arc_easy")} == {3, 4, 5}


def test_a_budget_of_labels_is_split_four_to_one_and_drawn_by_seed(data_dir: str) -> None:
    drawn = {}
    for seed in (0, 1):
        data = make("arc_easy", data_dir, tokenizer=None, labels=100, seed=seed)
        train, val = ({q.id for q in questions} for questions in (data.train_questions, data.val_questions))
        assert (len(train), len(val)) == (80, 20)
        assert not train & val
        drawn[seed] = train | val
        assert drawn[seed] <= {q.id for q in make("arc_easy", data_dir).train_questions}
    assert len(drawn[0] & drawn[1]) < 30
