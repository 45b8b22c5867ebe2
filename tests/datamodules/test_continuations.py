"""Labels of several tokens: their tokens behind the prompt, their ends, and how they lie in a batch."""

from pathlib import Path
from typing import Any

import pytest
import torch

from bayeslora.datamodules import JSONLDataModule
from bayeslora.datamodules.batch import collate
from bayeslora.datamodules.continuations import ContinuationEncoder
from bayeslora.datamodules.prompting import Prompting
from bayeslora.datamodules.protocols import OwnProtocol
from bayeslora.datamodules.question import Question
from bayeslora.datamodules.tokenizer import token_ids
from bayeslora.datamodules.writer import ChatWriter, PromptWriter
from bayeslora.errors import UsageError

WORDS = ("no", "no answer", "refund", "billing problem")
PROTOCOL = OwnProtocol(template="Message: {question}\nIntent:", words="options", end="\n")
ASKED = [Question("1", "Where is my money?", WORDS, 2), Question("2", "Why so much?\n", WORDS[:3], 0)]
CHATML = "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content.strip() }}<eos>\n{% endfor %}"


def changed(**own: Any) -> OwnProtocol:
    return OwnProtocol.from_dict({**PROTOCOL.to_dict(), **own})


def encoder(tokenizer: Any, protocol: OwnProtocol = PROTOCOL, max_length: int = 512) -> ContinuationEncoder:
    return ContinuationEncoder(PromptWriter(protocol, "jsonl"), tokenizer, max_length)


@pytest.fixture(params=["llama2", "mistral_v1", "byte_level"])
def tokenizer(request: pytest.FixtureRequest) -> Any:
    if request.param == "byte_level":
        return request.getfixturevalue("byte_level")
    return request.getfixturevalue("real_tokenizer")(request.param)


@pytest.mark.parametrize("end", ["\n", ".", "stop"])
def test_prompt_and_label_are_the_tokens_of_the_whole_text(tokenizer: Any, end: str) -> None:
    for question, encoded in zip(ASKED, encoder(tokenizer, changed(end=end)).encode(ASKED), strict=True):
        prompt = PROTOCOL.prompt("jsonl", question).text
        assert encoded.labels is not None
        assert encoded.labels.weights == (1.0,) * len(question.options)
        for word, ids in zip(question.options, encoded.labels.ids, strict=True):
            whole = tokenizer(f"{prompt} {word}{'' if end == 'stop' else end}")["input_ids"]
            whole += [tokenizer.eos_token_id] if end == "stop" else []
            assert whole == [*encoded.rows[0], *ids]


def test_a_chat_template_ends_an_answer_with_its_turn(byte_level: Any) -> None:
    byte_level.chat_template = CHATML
    protocol = changed(end="stop", system="Sort messages.")
    writer = ChatWriter(protocol, "jsonl", ASKED[1:], 1, byte_level)
    assert writer.stop == "<eos>"
    (encoded,) = ContinuationEncoder(writer, byte_level, 512).encode(ASKED[:1])
    assert encoded.labels is not None
    for word, ids in zip(WORDS, encoded.labels.ids, strict=True):
        turns = [("system", "Sort messages."), ("user", PROTOCOL.prompt("jsonl", ASKED[1]).text), ("assistant", "no"),
                 ("user", PROTOCOL.prompt("jsonl", ASKED[0]).text), ("assistant", word)]  # fmt: skip
        listed = [{"role": role, "content": content} for role, content in turns]
        whole = byte_level.apply_chat_template(listed, tokenize=True)["input_ids"]
        assert whole[: len(encoded.rows[0]) + len(ids)] == [*encoded.rows[0], *ids]
        assert ids[-1] == byte_level.eos_token_id


@pytest.mark.parametrize("by", ["tokens", "characters"])
def test_weights_of_scores_that_are_divided_by_lengths(byte_level: Any, by: str) -> None:
    (encoded,) = encoder(byte_level, changed(normalise=by)).encode(ASKED[:1])
    assert encoded.labels is not None
    sizes = [len(ids) for ids in encoded.labels.ids] if by == "tokens" else [len(word) for word in WORDS]
    assert encoded.labels.weights == tuple(1 / size for size in sizes)
    assert encoded.labels.normalised


def test_a_batch_holds_every_label_where_it_is_predicted(byte_level: Any) -> None:
    encoded = encoder(byte_level).encode(ASKED)
    batch = collate([(row, [one]) for row, one in enumerate(encoded)], "d", "left", 2)
    whole = batch.whole_labels
    assert whole is not None
    assert batch.attention_mask.sum(-1).tolist() == [one.length for one in encoded]
    assert batch.prompt_mask.sum(-1).tolist() == [len(one.rows[0]) for one in encoded]
    assert (batch.prompt_mask.sum(-1) + whole.offsets.max(-1).values).tolist() == [one.positions for one in encoded]
    width = batch.input_ids.shape[1]
    for row, one in enumerate(encoded):
        assert one.labels is not None
        for option, ids in enumerate(one.labels.ids):
            held = int((whole.weights[row, option] > 0).sum())
            assert tuple(whole.ids[row, option, :held].tolist()) == ids
            places = width - whole.places[row, option, :held]
            assert batch.input_ids[row, places].tolist() == [one.rows[0][-1], *ids[:-1]]
            assert whole.segments[row, places].tolist() == [0, *[option + 1] * (held - 1)]
            assert whole.offsets[row, places].tolist() == list(range(held))
    assert whole.weights[1, 3].tolist() == [0.0] * whole.weights.shape[2]
    assert torch.equal(whole.select(torch.tensor([1])).ids, whole.ids[1:])


def test_a_label_that_begins_another_is_refused(byte_level: Any) -> None:
    words = {"a": "no", "b": "no\nway"}
    question = Question("q", "Why?", ("a", "b"), 0)
    with pytest.raises(UsageError, match=r"'q' has the label 'no', whose tokens, its end included, begin those of 'no"):
        encoder(byte_level, changed(words=words)).encode([question])
    encoder(byte_level, changed(words=words, end="stop")).encode([question])


def test_a_token_across_the_seam_is_refused(real_tokenizer: Any) -> None:
    tokenizer = real_tokenizer("llama2")
    merged = changed(template="{question} Ans", separator="", words=("wer", "no"))
    assert token_ids(tokenizer, ["x Answer"]) != [
        [*token_ids(tokenizer, ["x Ans"])[0], *token_ids(tokenizer, ["wer"])[0]]
    ]
    with pytest.raises(
        UsageError, match=r"label 'wer' behind '.* Ans' became '▁Answer'.*prompt's own tokens must stay"
    ):
        encoder(tokenizer, merged).encode([Question("q", "Why?", ("a", "b"), 0)])


def test_a_tokenizer_without_an_end_of_sequence(byte_level: Any) -> None:
    byte_level.eos_token = None
    try:
        with pytest.raises(UsageError, match=r'no end-of-sequence token; give a text, such as "\\n"'):
            encoder(byte_level, changed(end="stop"))
    finally:
        byte_level.eos_token = "<eos>"


def test_a_prompt_is_cut_so_that_its_longest_label_fits(byte_level: Any) -> None:
    long = Question("q", " ".join(f"word{i}" for i in range(40)), WORDS, 0)
    (whole,) = encoder(byte_level).encode([long])
    (cut,) = encoder(byte_level, max_length=40).encode([long])
    assert cut.cut
    assert not whole.cut
    assert cut.labels == whole.labels
    assert 36 <= cut.positions <= 40


@pytest.mark.parametrize(
    ("own", "says"),
    [
        ({"end": ""}, "end of a protocol is ''; allowed: text, or stop"),
        ({"normalise": "bytes"}, "normalise of a protocol is 'bytes'; allowed: tokens, characters"),
        ({"normalise": "tokens", "end": None}, "normalise of a protocol is 'tokens' without an end"),
    ],
)
def test_what_is_wrong_with_ends_is_said(own: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        changed(**own)


def test_data_with_orders_of_options(question_folder: Path, byte_level: Any) -> None:
    protocol = changed(template="{question}\n{options}\nAnswer:")
    data = JSONLDataModule(
        path=str(question_folder), tokenizer=byte_level, protocol=protocol, permutations=2, shuffle_options=True
    )
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    assert batch.whole_labels is not None
    test = next(iter(data.test_dataloader()[0]))
    assert test.option_order is not None
    ids = test.whole_labels.ids
    back = test.option_order.argsort(-1)[..., None].expand_as(ids)
    in_order = ids.gather(1, back).view(len(ids) // 2, 2, *ids.shape[1:])
    assert torch.equal(in_order[:, 0], in_order[:, 1])


def test_new_questions_are_asked_in_the_same_way(byte_level: Any) -> None:
    prompting = Prompting("jsonl", PROTOCOL.saved(), "x", None, "label_token", 512)
    again = Prompting.from_dict(prompting.to_dict())
    assert [rows[0] for rows in again.rows(ASKED, byte_level).encoded] == encoder(byte_level).encode(ASKED)
