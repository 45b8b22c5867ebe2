"""Worked examples and chat templates around the default prompt."""

from pathlib import Path
from typing import Any

import pytest

from bayeslora.datamodules import JSONLDataModule
from bayeslora.datamodules.protocols import get_protocol
from bayeslora.datamodules.question import Question
from bayeslora.datamodules.writer import ChatWriter, PromptWriter
from bayeslora.errors import UsageError

FIRST = Question("1", "One?", ("yes", "no"), 0)
SECOND = Question("2", "Two?", ("yes", "no"), 1)
ASKED = Question("3", "Three?", ("sun", "moon"), 1)
DEFAULT = get_protocol("default")

CHATML = (
    "{% for m in messages %}<|{{ m.role }}|>\n"
    "{% if m.role == 'assistant' and loop.last %}<think>\n\n</think>\n\n{% endif %}{{ m.content.strip() }}<|end|>\n"
    "{% endfor %}"
)
LLAMA2 = (
    "{% for m in messages %}{% if m.role == 'user' %}{{ bos_token + '[INST] ' + m.content.strip() + ' [/INST]' }}"
    "{% else %}{{ ' ' + m.content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
)


def chat(tokenizer: Any, template: str, shots: int = 0) -> ChatWriter:
    tokenizer.chat_template = template
    return ChatWriter(DEFAULT, "jsonl", [FIRST, SECOND, ASKED], shots, tokenizer)


def test_examples_stand_in_front_with_their_answers() -> None:
    writer = PromptWriter(DEFAULT, "jsonl", [FIRST, SECOND], shots=2)
    assert writer.write(ASKED).text == (
        "Question: One?\nA. yes\nB. no\nAnswer: A\n\n"
        "Question: Two?\nA. yes\nB. no\nAnswer: B\n\n"
        "Question: Three?\nA. sun\nB. moon\nAnswer:"
    )
    assert writer.write(ASKED, shots=1).text.startswith("Question: One?\nA. yes\nB. no\nAnswer: A\n\nQuestion: Three?")


def test_a_question_is_not_shown_in_front_of_itself() -> None:
    writer = PromptWriter(DEFAULT, "jsonl", [FIRST, SECOND], shots=1)
    assert writer.write(FIRST).text.count("One?") == 1
    assert "Two?" in writer.write(FIRST).text
    assert "Two?" not in writer.write(SECOND).text.removesuffix(DEFAULT.prompt("jsonl", SECOND).text)


def test_spans_follow_the_question() -> None:
    for shots in (0, 2):
        prompt = PromptWriter(DEFAULT, "jsonl", [FIRST, SECOND], shots).write(ASKED)
        assert [prompt.text[start:end] for start, end in prompt.spans] == [" Three?"]


def test_what_a_template_puts_before_an_answer_belongs_to_the_prompt(byte_level: Any) -> None:
    writer = chat(byte_level, CHATML, shots=1)
    prompt = writer.write(ASKED)
    assert prompt.text == (
        "<|user|>\nQuestion: One?\nA. yes\nB. no\nAnswer:<|end|>\n<|assistant|>\nA<|end|>\n"
        "<|user|>\nQuestion: Three?\nA. sun\nB. moon\nAnswer:<|end|>\n<|assistant|>\n<think>\n\n</think>\n\n"
    )
    assert writer.separator == ""
    assert [prompt.text[start:end] for start, end in prompt.spans] == [" Three?"]


def test_a_space_before_the_answer_is_the_separator(byte_level: Any) -> None:
    writer = chat(byte_level, LLAMA2)
    assert writer.write(ASKED).text == "<bos>[INST] Question: Three?\nA. sun\nB. moon\nAnswer: [/INST]"
    assert writer.separator == " "


def test_a_tokenizer_without_a_template_is_refused(question_folder: Path, byte_level: Any) -> None:
    byte_level.chat_template = None
    data = JSONLDataModule(path=str(question_folder), tokenizer=byte_level, chat=True)
    with pytest.raises(UsageError, match=r"chat is true, but the tokenizer .* has no chat template"):
        data.train_dataloader()


@pytest.mark.parametrize("template, letter", [(CHATML, "A"), (LLAMA2, "ĠA")])
def test_label_tokens_behind_a_template(question_folder: Path, byte_level: Any, template: str, letter: str) -> None:
    byte_level.chat_template = template
    data = JSONLDataModule(path=str(question_folder), tokenizer=byte_level, chat=True, shots=2)
    encoded = data.encoded("train")[0]
    assert byte_level.convert_ids_to_tokens(encoded.answers[0]) == letter
    text = byte_level.decode(encoded.rows[0])
    assert text.count("Question:") == 3
    assert text.count("<bos>") == (3 if template == LLAMA2 else 0)  # the template's own, and none besides
    byte_level.chat_template = None


def test_real_label_tokens_behind_a_template(question_folder: Path, real_tokenizer: Any) -> None:
    tokenizer = real_tokenizer("llama2")
    tokenizer.chat_template = LLAMA2
    data = JSONLDataModule(path=str(question_folder), tokenizer=tokenizer, chat=True)
    encoded = data.encoded("train")
    assert {encoded_.answers[:3] for encoded_ in encoded} == {(319, 350, 315)}
    assert all(encoded_.rows[0].count(tokenizer.bos_token_id) == 1 for encoded_ in encoded)


def test_a_long_prompt_loses_whole_examples_first_and_then_its_front(question_folder: Path, byte_level: Any) -> None:
    def rows(shots: int, max_length: int) -> list[list[int]]:
        data = JSONLDataModule(path=str(question_folder), tokenizer=byte_level, shots=shots, max_length=max_length)
        return [encoded.rows[0] for encoded in data.encoded("train")]

    bare, longest = rows(0, 10_000), max(map(len, rows(0, 10_000)))
    limit = longest + 30
    shown = {byte_level.decode(row).count("Question:") for row in rows(3, limit)}
    assert len(shown) > 1
    for row, without in zip(rows(3, limit), bare, strict=True):
        assert len(row) <= limit
        assert row[1:][-len(without) + 1 :] == without[1:]  # the question itself is whole
        assert byte_level.decode(row).count("Question:") >= 1
    short = rows(3, longest - 5)
    assert all(len(row) <= longest - 5 for row in short)
    assert any(row != without for row, without in zip(short, bare, strict=True))


def test_examples_come_from_the_training_questions_of_the_budget(question_folder: Path, byte_level: Any) -> None:
    data = JSONLDataModule(path=str(question_folder), tokenizer=byte_level, shots=2, labels=10)
    (test_name,) = data.test_names
    text = byte_level.decode(data.encoded(test_name)[0].rows[0])
    shown = [part.split("\n")[0].removeprefix("Question: ") for part in text.removeprefix("<bos>").split("\n\n")]
    assert len(shown) == 3
    assert set(shown[:2]) <= {question.question for question in data.train_questions}
    assert shown[2] == data.questions(test_name)[0].question


def test_nor_in_front_of_itself_with_its_options_in_another_order() -> None:
    writer = PromptWriter(DEFAULT, "jsonl", [FIRST, SECOND], shots=1)
    assert writer.write(FIRST.reordered((1, 0))).text.count("One?") == 1
