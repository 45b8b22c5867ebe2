"""Label tokens as they stand behind a prompt, and prompts that are too long for the model."""

from pathlib import Path
from typing import Any

import pytest

from bayeslora.datamodules.encode import LabelTokenEncoder
from bayeslora.datamodules.jsonl import JSONLDataModule
from bayeslora.datamodules.protocols import get_protocol
from bayeslora.datamodules.question import Question
from bayeslora.datamodules.tokenizer import token_ids
from bayeslora.datamodules.writer import PromptWriter
from bayeslora.errors import UsageError

LONG = " ".join(f"word{i}" for i in range(40))


def encoder(tokenizer: Any, max_length: int = 512) -> LabelTokenEncoder:
    return LabelTokenEncoder(PromptWriter(get_protocol("default"), "jsonl"), tokenizer, max_length)


def question(text: str = "What is hot?", options: int = 4, context: str = "") -> Question:
    return Question("q", text, tuple(f"thing {i}" for i in range(options)), 1, context)


@pytest.fixture(params=["llama2", "mistral_v1", "byte_level"])
def tokenizer(request: pytest.FixtureRequest) -> Any:
    if request.param == "byte_level":
        return request.getfixturevalue("byte_level")
    return request.getfixturevalue("real_tokenizer")(request.param)


@pytest.fixture
def words() -> Any:
    """A tokenizer of whole words, which lacks the letter C: it and every unknown word are the same token."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = ["[UNK]", "Question", ":", "A", "B", ".", "Answer", "thing"]
    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(vocabulary)}, unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=core, unk_token="[UNK]")


def characters() -> Any:
    """A tokenizer of single bytes, to which a space and a letter are two tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE({byte: i for i, byte in enumerate(alphabet)}, []))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=core)


def test_a_label_token_is_what_follows_the_prompt(tokenizer: Any) -> None:
    asked = [question(options=5), question("Why is it so?\nTell me: ", 3, context="Some passage."), question("Ω 3²", 5)]
    for item, encoded in zip(asked, encoder(tokenizer).encode(asked), strict=True):
        prompt = get_protocol("default").prompt("jsonl", item).text
        for letter, token in zip("ABCDE", encoded.answers, strict=False):
            assert tokenizer(f"{prompt} {letter}")["input_ids"] == [*encoded.rows[0], token]
        assert len(encoded.answers) == len(item.options) == len(set(encoded.answers))
    first, *rest = encoder(tokenizer).encode(asked)
    assert all(first.answers[:3] == other.answers[:3] for other in rest)


def test_the_names_of_real_label_tokens(tokenizer: Any) -> None:
    (encoded,) = encoder(tokenizer).encode([question(options=5)])
    letters = [token[1:] for token in tokenizer.convert_ids_to_tokens(list(encoded.answers))]
    space = {token[0] for token in tokenizer.convert_ids_to_tokens(list(encoded.answers))}
    assert letters == list("ABCDE")
    assert len(space) == 1
    assert space <= {"▁", "Ġ"}


def test_a_label_of_two_tokens_is_refused() -> None:
    with pytest.raises(UsageError, match=r"label 'A' after .* became 'Ġ' \+ 'A'; it must be one token"):
        encoder(characters()).encode([question()])


def test_labels_that_share_a_token_are_refused(words: Any) -> None:
    assert len(encoder(words).encode([question(options=2)])[0].answers) == 2
    with pytest.raises(UsageError, match=r"distinct tokens, but .*'C' became '\[UNK\]', 'D' became '\[UNK\]'"):
        encoder(words).encode([question(options=4)])


def test_a_long_prompt_loses_the_front_of_its_passage_then_of_its_question(tokenizer: Any) -> None:
    item = question(f"asked {LONG}?", context=f"passage {LONG}.")
    (whole,) = encoder(tokenizer, 10_000).encode([item])
    assert not whole.cut
    for missing in (1, 7, 30):
        (cut,) = encoder(tokenizer, whole.length - missing).encode([item])
        passage, asked = tokenizer.decode(cut.rows[0], skip_special_tokens=True).split("\n", maxsplit=1)
        assert (cut.cut, cut.length, cut.answers) == (True, whole.length - missing, whole.answers)
        assert passage.startswith("Passage:")
        assert passage.endswith("word38 word39.")
        assert len(passage) < len(f"Passage: {item.context}")
        assert asked == get_protocol("default").prompt("jsonl", question(item.question)).text
    removable = len(token_ids(tokenizer, [item.context, item.question])[0])
    (passage_gone,) = encoder(tokenizer, whole.length - removable - 5).encode([item])
    assert "word39." not in tokenizer.decode(passage_gone.rows[0])
    assert "asked" not in tokenizer.decode(passage_gone.rows[0])


def test_options_alone_too_long_are_refused(tokenizer: Any) -> None:
    item = Question("the-id", LONG, (LONG, LONG), 0)
    with pytest.raises(UsageError, match=r"question 'the-id' needs \d+ tokens .* max_length is 60; raise max_length"):
        encoder(tokenizer, 60).encode([item])


def test_cut_prompts_are_counted(question_folder: Path, byte_level: Any) -> None:
    data = JSONLDataModule(str(question_folder), tokenizer=byte_level)
    data.setup("fit")
    assert data.report()["cut"] == {"train": 0, "validation": 0}
    lengths = sorted(item.length for item in data.encoded("train"))
    shorter = JSONLDataModule(str(question_folder), tokenizer=byte_level, max_length=lengths[-4])
    shorter.setup("fit")
    assert shorter.report()["cut"]["train"] == sum(length > lengths[-4] for length in lengths) > 0
    assert max(item.length for item in shorter.encoded("train")) == lengths[-4]
