"""One's own prompt and label words: golden prompts, real tokenizers, and what is refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bayeslora.datamodules import JSONLDataModule
from bayeslora.datamodules.encode import LabelTokenEncoder
from bayeslora.datamodules.prompting import Prompting
from bayeslora.datamodules.protocols import OwnProtocol, get_protocol
from bayeslora.datamodules.question import Question
from bayeslora.datamodules.writer import ChatWriter, PromptWriter
from bayeslora.errors import UsageError

MODERATION = """\
name: moderation
system: You moderate a forum.
template: |-
  Rule: {context}
  Post: {question}
  Does the post break the {{house}} rule?
words:
  allowed: no
  forbidden: yes
"""
JUDGE = OwnProtocol(
    template="Task: {question}\n\n{options}\n\nThe better answer is",
    option="Answer {label}:\n{option}",
    option_separator="\n\n",
)
LISTED = OwnProtocol(template="{context} {question}\n{options}\nAnswer:", words="options")
POST = Question("p", "Buy now!", ("allowed", "forbidden"), 1, "No advertising.")
TWO = Question("t", "Name a prime.", ("7", "8"), 0)

CHATML = (
    "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content.strip() }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
NO_SYSTEM = (
    "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('System role not supported') }}"
    "{% endif %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
)


@pytest.fixture
def moderation(tmp_path: Path) -> OwnProtocol:
    file = tmp_path / "moderation.yaml"
    file.write_text(MODERATION)
    found = get_protocol(str(file))
    assert isinstance(found, OwnProtocol)
    return found


@pytest.fixture(params=["llama2", "mistral_v1", "byte_level"])
def tokenizer(request: pytest.FixtureRequest) -> Any:
    if request.param == "byte_level":
        return request.getfixturevalue("byte_level")
    return request.getfixturevalue("real_tokenizer")(request.param)


def text_of(protocol: OwnProtocol, question: Question, *examples: Question) -> str:
    return PromptWriter(protocol, "jsonl", examples, len(examples)).write(question).text


def test_a_prompt_from_a_file(moderation: OwnProtocol) -> None:
    asked = "Rule: No advertising.\nPost: Buy now!\nDoes the post break the {house} rule?"
    assert moderation.prompt("jsonl", POST).text == asked
    assert moderation.labels("jsonl", POST) == ["no", "yes"]
    assert moderation.labels("jsonl", POST.reordered([1, 0])) == ["yes", "no"]


def test_a_line_for_the_context_is_left_out_where_there_is_none(moderation: OwnProtocol) -> None:
    bare = Question("p", "Hello.", ("allowed", "forbidden"), 0)
    assert moderation.prompt("jsonl", bare).text == "Post: Hello.\nDoes the post break the {house} rule?"
    assert LISTED.prompt("jsonl", TWO).text == " Name a prime.\n- 7\n- 8\nAnswer:"


def test_the_instruction_stands_once_in_front_of_the_examples(moderation: OwnProtocol) -> None:
    shown = Question("s", "Hi.", ("allowed", "forbidden"), 0, "Be kind.")
    assert text_of(moderation, POST, shown) == (
        "You moderate a forum.\n\n"
        "Rule: Be kind.\nPost: Hi.\nDoes the post break the {house} rule? no\n\n"
        "Rule: No advertising.\nPost: Buy now!\nDoes the post break the {house} rule?"
    )


def test_options_are_written_as_asked() -> None:
    assert text_of(JUDGE, TWO) == "Task: Name a prime.\n\nAnswer A:\n7\n\nAnswer B:\n8\n\nThe better answer is"
    assert list(JUDGE.labels("jsonl", TWO)) == ["A", "B"]
    numbered = OwnProtocol(template="{question}\n{options}\nNumber:", words=("1", "2", "3"))
    assert text_of(numbered, TWO) == "Name a prime.\n1. 7\n2. 8\nNumber:"
    assert list(numbered.labels("jsonl", TWO)) == ["1", "2"]


def test_braces_in_a_question_are_text() -> None:
    odd = Question("o", "{options} {0.__class__} {", ("{label}", "}"), 0)
    assert text_of(JUDGE, odd) == (
        "Task: {options} {0.__class__} {\n\nAnswer A:\n{label}\n\nAnswer B:\n}\n\nThe better answer is"
    )


def test_spans_are_context_and_question_with_the_space_in_front(moderation: OwnProtocol) -> None:
    prompt = PromptWriter(moderation, "jsonl", [TWO], 0).write(POST)
    assert [prompt.text[start:end] for start, end in prompt.spans] == [" No advertising.", " Buy now!"]


def test_label_words_are_the_tokens_that_follow(moderation: OwnProtocol, tokenizer: Any) -> None:
    protocol = moderation
    if tokenizer.name_or_path == "":  # to the small tokenizer, single letters alone are one token
        protocol = OwnProtocol.from_dict({**moderation.to_dict(), "words": {"allowed": "A", "forbidden": "B"}})
    encoder = LabelTokenEncoder(PromptWriter(protocol, "jsonl"), tokenizer, 512)
    asked = [POST, POST.reordered([1, 0]), Question("b", "Hello,", ("allowed", "forbidden"), 0)]
    for question, encoded in zip(asked, encoder.encode(asked), strict=True):
        prompt = text_of(protocol, question)
        for word, token in zip(protocol.labels("jsonl", question), encoded.answers, strict=True):
            assert tokenizer(f"{prompt} {word}")["input_ids"] == [*encoded.rows[0], token]


def test_a_chat_template_takes_the_instruction_as_its_system_turn(moderation: OwnProtocol, byte_level: Any) -> None:
    byte_level.chat_template = CHATML
    shown = Question("s", "Hi.", ("allowed", "forbidden"), 0)
    writer = ChatWriter(moderation, "jsonl", [shown], 1, byte_level)
    assert writer.write(POST).text == (
        "<|system|>\nYou moderate a forum.<|end|>\n"
        "<|user|>\nPost: Hi.\nDoes the post break the {house} rule?<|end|>\n<|assistant|>\nno<|end|>\n"
        "<|user|>\nRule: No advertising.\nPost: Buy now!\nDoes the post break the {house} rule?<|end|>\n<|assistant|>\n"
    )
    turns = [
        {"role": "system", "content": "You moderate a forum."},
        {"role": "user", "content": moderation.prompt("jsonl", POST).text},
    ]
    wanted = byte_level.apply_chat_template(turns, tokenize=True, add_generation_prompt=True)["input_ids"]
    letters = OwnProtocol.from_dict({**moderation.to_dict(), "words": ["A", "B"]})
    (encoded,) = LabelTokenEncoder(ChatWriter(letters, "jsonl", [], 0, byte_level), byte_level, 512).encode([POST])
    assert encoded.rows[0] == wanted


@pytest.mark.parametrize(("template", "says"), [(NO_SYSTEM, "System role not"), ("{{ messages[-1].content }}", "out")])
def test_a_template_without_a_place_for_the_instruction(
    moderation: OwnProtocol, byte_level: Any, template: str, says: str
) -> None:
    byte_level.chat_template = template
    with pytest.raises(UsageError, match=says):
        ChatWriter(moderation, "jsonl", [], 0, byte_level)


@pytest.mark.parametrize("through", ["dict", "json", "prompting"])
def test_it_survives_being_saved(moderation: OwnProtocol, through: str) -> None:
    for protocol in (moderation, JUDGE, LISTED, OwnProtocol(template="{question}", words=("yes", "no"))):
        saved = protocol.saved()
        if through == "json":
            saved = json.loads(json.dumps(saved))
        if through == "prompting":
            prompting = Prompting("jsonl", saved, "embedded", None, "label_token", 512)
            saved = Prompting.from_dict(json.loads(json.dumps(prompting.to_dict()))).protocol
        assert get_protocol(saved) == protocol


def test_data_take_a_file_its_content_or_an_object(
    question_folder: Path, write_jsonl: Callable[..., Path], byte_level: Any
) -> None:
    file = write_jsonl("own.yaml", ['template: "{question}\\n{options}\\nAnswer:"', "max_length: 400"])
    content = {"template": "{question}\n{options}\nAnswer:", "max_length": 400}
    ways = (str(file), content, OwnProtocol(**content))
    rows = []
    for protocol in ways:
        data = JSONLDataModule(path=str(question_folder), tokenizer=byte_level, protocol=protocol, shots=1)
        assert data.max_length == 400
        rows.append(data.encoded("train"))
    assert rows[0] == rows[1] == rows[2]


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"template": "Q: {queston}"}, r"placeholder \{queston\}; allowed: \{context\}, \{question\}, \{options\}"),
        ({"template": "{question.__class__}"}, r"placeholder \{question\.__class__\}"),
        ({"template": "{question!r:>10}"}, r"placeholder \{question!r:>10\}"),
        ({"template": "{question"}, r"write braces as \{\{ and \}\}"),
        ({"template": "Answer:"}, r"without \{question\}"),
        ({"template": "{question}\n"}, r"ends with white space .* template: \|-"),
        ({"template": 3}, "template of a protocol is 3; allowed: text"),
        ({"option": "{label}."}, r"option of a protocol is '\{label\}\.', without \{option\}"),
        ({"words": "numbers"}, "words of a protocol is 'numbers'; allowed: letters, options, a list"),
        ({"words": [True, False]}, "a word of a protocol is True; allowed: text; put words such as 'yes'"),
        ({"words": {"a": "x", "b": "x"}}, "allowed: two or more, each once"),
        ({"words": [" yes", "no"]}, "a word of a protocol is ' yes'; allowed: text without white space"),
        ({"words": None}, "words of a protocol is None"),
        ({"max_length": 0}, "max_length of a protocol is 0; allowed: a number of tokens, 1 or more"),
        ({"name": "blob"}, "name of a protocol is 'blob'"),
        ({"labels": ["a", "b"]}, "a key of a protocol is 'labels'; allowed: template, option"),
    ],
)
def test_what_is_wrong_with_a_protocol_is_said(changed: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        get_protocol({"template": "{question}"} | changed)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("option: x\noption: y\n", r"own\.yaml.*, line 1: the key 'option' is there twice"),
        ("template: [", "is no valid YAML"),
        ("just text", "holds no keys"),
        ("name: x\n", "has no template"),
        ("template: '{question}'\nmax_length: many\n", "max_length of a protocol is 'many'"),
    ],
)
def test_what_is_wrong_with_a_file_is_said(tmp_path: Path, text: str, says: str) -> None:
    file = tmp_path / "own.yaml"
    file.write_text(text)
    with pytest.raises(UsageError, match=says):
        get_protocol(str(file))
    with pytest.raises(UsageError, match="cannot be read"):
        get_protocol(str(tmp_path / "missing.yaml"))


def test_words_that_do_not_fit_the_question(byte_level: Any) -> None:
    def encode(words: Any, question: Question) -> None:
        protocol = OwnProtocol(template="{question}\n{options}\nAnswer:", words=words)
        LabelTokenEncoder(PromptWriter(protocol, "jsonl"), byte_level, 512).encode([question])

    three = Question("q", "Which?", ("a", "b", "c"), 0)
    with pytest.raises(UsageError, match=r"'q' has 3 options, the protocol labels for 2; .* more words"):
        encode(("A", "B"), three)
    with pytest.raises(UsageError, match="'q' has the option 'b', for which words of protocol 'own' have none"):
        encode({"a": "A", "c": "C"}, three)


def test_orders_of_options_that_the_model_would_not_see(question_folder: Path) -> None:
    def data(**own: Any) -> None:
        JSONLDataModule(path=str(question_folder), protocol=OwnProtocol(**own), shuffle_options=True)

    data(template="{question}\n{options}\nAnswer:")
    data(template="{question}\n{options}\nAnswer:", words="options")
    with pytest.raises(UsageError, match=r"shuffle_options is given, but the template .* has no \{options\}"):
        data(template="{question}")
    with pytest.raises(UsageError, match=r"shuffle_options is given, but words .* write \{label\} into it"):
        data(template="{question}\n{options}\nAnswer:", option="* {option}")


@pytest.mark.parametrize("nothing", ["null", "~"])
def test_null_in_a_file_leaves_out_what_may_be_left_out(nothing: str, tmp_path: Path) -> None:
    """As the messages say it (``end: null``); a word ``null`` is a word like any other."""
    file = tmp_path / "own.yaml"
    keys = "".join(f"{key}: {nothing}\n" for key in ("option", "end", "normalise"))
    file.write_text(f'template: "{{question}}"\nwords: [null, "~"]\n{keys}')
    protocol = get_protocol(str(file))
    assert protocol == OwnProtocol(template="{question}", words=("null", "~"))
    assert protocol.end is None
