"""The releases' protocols to the letter: prompts, labels, filters, splits, what follows the prompt, what is cut."""

from typing import Any

import pytest

from bayeslora.datamodules import (
    ARCDataModule,
    BoolQDataModule,
    JSONLDataModule,
    OpenBookQADataModule,
    WinoGrandeDataModule,
)
from bayeslora.datamodules.encode import Encoded, LabelTokenEncoder
from bayeslora.datamodules.protocols import get_protocol
from bayeslora.datamodules.protocols.base import PROTOCOLS, Splits
from bayeslora.datamodules.question import Question
from bayeslora.datamodules.registry import get_benchmark
from bayeslora.datamodules.writer import PromptWriter
from bayeslora.errors import UsageError

ARC = Question("a", "What falls?", ("an apple", "the sky.", "night", "Rome"), 0, marks=("A", "B", "C", "D"))
DIGITS = Question("d", "What falls?", ("an apple", "the sky.", "night", "Rome"), 2, marks=("1", "2", "3", "4"))
FIVE = Question("f", "Where?", ("here", "there", "nowhere.", "anywhere", "else"), 4, marks=("A", "B", "C", "D", "E"))
WINO = Question("w", "Ann thanked Eve as _ was kind.", ("Ann", "Eve"), 1, marks=("1", "2"))
YES = Question("y", "is ice cold", ("No", "Yes"), 1, context="Ice is cold.")
MMLU = Question("m", "1+1?", ("2", "3", "4.", "five"), 0)
TASKS = {"arc": ARC, "obqa": ARC, "csqa": FIVE, "winogrande": WINO, "boolq": YES, "mmlu": MMLU}

SELECT = "Select one of the choices that answers the following question: "
RETURN = "Return the label of the correct answer for the question below.\n\nQuestion: "
GOLDEN = {
    ("default", "arc"): "Question: What falls?\nA. an apple\nB. the sky.\nC. night\nD. Rome\nAnswer:",
    ("default", "csqa"): "Question: Where?\nA. here\nB. there\nC. nowhere.\nD. anywhere\nE. else\nAnswer:",
    ("default", "winogrande"): "Question: Ann thanked Eve as _ was kind.\nA. Ann\nB. Eve\nAnswer:",
    ("default", "boolq"): "Passage: Ice is cold.\nQuestion: is ice cold\nA. No\nB. Yes\nAnswer:",
    ("default", "mmlu"): "Question: 1+1?\nA. 2\nB. 3\nC. 4.\nD. five\nAnswer:",
    ("laplace_lora", "arc"): SELECT + "What falls? Choices: A. An apple. B. The sky. C. Night. D. Rome. Answer:",
    ("laplace_lora", "obqa"): SELECT + "What falls? Choices: A. An apple. B. The sky. C. Night. D. Rome. Answer:",
    ("laplace_lora", "mmlu"): SELECT + "1+1? Choices: A. 2. B. 3. C. 4. D. Five. Answer:",
    ("laplace_lora", "winogrande"): SELECT + "Ann thanked Eve as _ was kind. Choices: A. Ann. B Eve. Answer:",
    ("laplace_lora", "boolq"): "Answer the question with only True or False: is ice cold Context: Ice is cold.",
    ("swag_lora", "arc"): SELECT + "What falls? Choices: A. An apple B. The sky. C. Night D. Rome Answer:",
    ("swag_lora", "obqa"): SELECT + "What falls? Choices: A. An apple. B. The sky. C. Night. D. Rome. Answer:",
    ("swag_lora", "csqa"): SELECT + "Where? Choices: A. Here B. There C. Nowhere. D. Anywhere E. Else Answer:",
    ("swag_lora", "mmlu"): SELECT + "1+1? Choices: A. 2. B. 3. C. 4. D. Five. Answer:",
    ("blob", "arc"): RETURN + "What falls?\nChoices:\nan apple) A\nthe sky.) B\nnight) C\nRome) D\nAnswer:",
    ("blob", "obqa"): RETURN + "What falls?\nChioces:\nan apple) A\nthe sky.) B\nnight) C\nRome) D\nAnswer:",
    ("blob", "winogrande"): RETURN + "Ann thanked Eve as _ was kind.\nChoices:\nA) Ann\nB) Eve\nAnswer:",
    ("blob", "mmlu"): RETURN + "1+1?\nChoices:\nA) 2\nB) 3\nC) 4.\nD) five\nAnswer:",
    ("blob", "boolq"): (
        "Read the passage below and answer the question with the words 'true' or 'false'.\n\n"
        "Passage: Ice is cold.\nQuestion: is ice cold\nAnswer (true or false):"
    ),
    ("lora_ensembles", "csqa"): (
        "Q: Where?\nAnswer Choices:\n(a) here\n(b) there\n(c) nowhere.\n(d) anywhere\n(e) else\nA: ("
    ),
    ("lora_ensembles", "mmlu"): "Q: 1+1?\nAnswer Choices:\n(a) 2\n(b) 3\n(c) 4.\n(d) five\nA: (",
}
GOLDEN |= {("laplace_lora_val", task): text for (name, task), text in GOLDEN.items() if name == "laplace_lora"}
LABELS = {
    ("default", "arc"): "ABCD",
    ("default", "boolq"): "AB",
    ("laplace_lora", "boolq"): ("False", "True"),
    ("laplace_lora", "winogrande"): "AB",
    ("swag_lora", "csqa"): "ABCDE",
    ("blob", "arc"): "ABCDE",
    ("blob", "obqa"): "ABCD",
    ("blob", "boolq"): ("True", "False"),
    ("lora_ensembles", "mmlu"): "abcde",
}


def encode(protocol: str, task: str, tokenizer: Any, question: Question, max_length: int = 300) -> Encoded:
    (encoded,) = LabelTokenEncoder(PromptWriter(get_protocol(protocol), task), tokenizer, max_length).encode([question])
    return encoded


@pytest.mark.parametrize("protocol, task", GOLDEN)
def test_golden_prompts(protocol: str, task: str) -> None:
    assert get_protocol(protocol).prompt(task, TASKS[task]).text == GOLDEN[protocol, task]


def test_every_task_of_every_release_has_a_golden_prompt() -> None:
    releases = [get_protocol(name) for name in PROTOCOLS if name != "default"]
    assert {(p.name, task) for p in releases for task in p.tasks or ()} == {
        key for key in GOLDEN if key[0] != "default"
    }


def test_only_blob_shows_arcs_digits() -> None:
    assert "\nan apple) 1\nthe sky.) 2\n" in get_protocol("blob").prompt("arc", DIGITS).text
    for name in ("laplace_lora", "swag_lora"):
        assert " A. An apple" in get_protocol(name).prompt("arc", DIGITS).text


def test_blob_cuts_a_passage_at_1024_characters() -> None:
    long = Question("y", "is ice cold", ("No", "Yes"), 1, context="x" * 2000)
    assert f"Passage: {'x' * 1024}\nQuestion:" in get_protocol("blob").prompt("boolq", long).text


@pytest.mark.parametrize("protocol, task", LABELS)
def test_labels(protocol: str, task: str) -> None:
    assert tuple(get_protocol(protocol).labels(task, TASKS[task])) == tuple(LABELS[protocol, task])


@pytest.mark.parametrize("name", ["llama2", "mistral_v1"])
@pytest.mark.parametrize("protocol, task", GOLDEN)
def test_label_tokens_of_the_real_tokenizers(protocol: str, task: str, name: str, real_tokenizer: Any) -> None:
    tokenizer = real_tokenizer(name)
    encoded = encode(protocol, task, tokenizer, TASKS[task])
    space = "" if protocol == "lora_ensembles" else "▁"
    labels = get_protocol(protocol).labels(task, TASKS[task])
    assert tokenizer.convert_ids_to_tokens(list(encoded.answers)) == [space + label for label in labels]
    eos = (protocol.removesuffix("_val"), task) in {
        ("laplace_lora", "boolq"),
        ("blob", "boolq"),
        ("blob", "winogrande"),
    }
    expected = tokenizer(GOLDEN[protocol, task])["input_ids"] + [tokenizer.eos_token_id] * eos
    assert encoded.rows == (expected,)


def test_published_token_ids(real_tokenizer: Any) -> None:
    llama, mistral = real_tokenizer("llama2"), real_tokenizer("mistral_v1")
    assert encode("laplace_lora", "arc", llama, ARC).answers == (319, 350, 315, 360)
    assert encode("lora_ensembles", "csqa", mistral, FIVE).answers == (28708, 28726, 28717, 28715, 28706)


def test_byte_level_label_tokens(byte_level: Any) -> None:
    names = {
        protocol: byte_level.convert_ids_to_tokens(list(encode(protocol, "obqa", byte_level, ARC).answers))
        for protocol in ("default", "laplace_lora", "blob")
    }
    assert names == {"default": ["ĠA", "ĠB", "ĠC", "ĠD"], "laplace_lora": list("ABCD"), "blob": list("ABCD")}


def test_releases_cut_on_the_right_and_keep_the_end_of_sequence(real_tokenizer: Any) -> None:
    tokenizer = real_tokenizer("llama2")
    long = Question("y", "is ice cold", ("No", "Yes"), 1, context="Ice is cold. " * 100)
    whole = tokenizer(get_protocol("laplace_lora").prompt("boolq", long).text)["input_ids"]
    cut = encode("laplace_lora", "boolq", tokenizer, long)
    assert cut.rows == ([*whole[:299], tokenizer.eos_token_id],)
    assert cut.cut
    assert not encode("laplace_lora", "boolq", tokenizer, YES).cut


def test_what_the_loss_normalises_over() -> None:
    supports = {name: get_protocol(name).support for name in PROTOCOLS}
    assert supports == {name: "full_vocab" if name == "lora_ensembles" else "options" for name in PROTOCOLS}


SPLITS = {
    ("default", "arc_easy"): Splits(("train",), "validation", "test"),
    ("default", "csqa"): Splits(("train",), None, "validation"),
    ("default", "boolq"): Splits(("train",), None, "validation"),
    ("default", "mmlu:law"): Splits(("dev", "validation"), None, "test"),
    ("laplace_lora", "arc_easy"): Splits(("train",), "validation", "validation"),
    ("laplace_lora", "winogrande_s"): Splits(("train",), "validation", "validation"),
    ("laplace_lora", "mmlu:law"): Splits(("dev", "validation"), None, "test"),
    ("laplace_lora_val", "obqa"): Splits(("train",), None, "validation", in_order=True),
    ("laplace_lora_val", "mmlu:law"): Splits(("dev", "validation"), None, "test"),
    ("swag_lora", "arc_easy"): Splits(("train",), "validation", "test"),
    ("swag_lora", "csqa"): Splits(("train",), None, "validation"),
    ("swag_lora", "mmlu:anatomy"): Splits(("dev",), "validation", "test"),
    ("blob", "obqa"): Splits(("train",), "validation", "validation"),
    ("lora_ensembles", "csqa"): Splits(("train",), "validation", "validation"),
    ("lora_ensembles", "mmlu:stem"): Splits(("dev", "validation"), "test", "test"),
}


@pytest.mark.parametrize("protocol, dataset", SPLITS)
def test_splits(protocol: str, dataset: str) -> None:
    assert get_protocol(protocol).splits(get_benchmark(dataset)) == SPLITS[protocol, dataset]


def test_only_laplace_and_swag_filter_and_only_arc() -> None:
    three = Question("t", "?", ("x", "y", "z"), 0, marks=("A", "B", "C"))
    kept = {name: (get_protocol(name).keeps("arc", three), get_protocol(name).keeps("arc", ARC)) for name in PROTOCOLS}
    assert kept == {name: (name not in ("laplace_lora", "laplace_lora_val", "swag_lora"), True) for name in PROTOCOLS}
    assert all(get_protocol(name).keeps("csqa", FIVE) for name in PROTOCOLS)


def test_a_task_the_release_does_not_have(question_folder: Any) -> None:
    with pytest.raises(
        UsageError, match="'swag_lora' does not define the task 'boolq'; allowed with it: arc, obqa, csqa"
    ):
        BoolQDataModule(protocol="swag_lora")
    with pytest.raises(UsageError, match="does not define the task 'jsonl'"):
        JSONLDataModule(path=str(question_folder), protocol="blob")
    with pytest.raises(UsageError, match="'laplace_lora' does not define the task 'csqa'"):
        ARCDataModule(protocol="laplace_lora", ood=["csqa"])


@pytest.mark.parametrize("option", [{"shots": 2}, {"chat": True}, {"shuffle_options": True}, {"permutations": 2}])
def test_options_of_default_are_not_for_releases_nor_for_heads(option: dict[str, Any]) -> None:
    (name,) = option
    with pytest.raises(UsageError, match=f"{name} is given with protocol 'blob', which fixes it"):
        OpenBookQADataModule(protocol="blob", **option)
    with pytest.raises(UsageError, match=f"{name} is given with readout 'head'"):
        OpenBookQADataModule(readout="head", **option)


def test_heads_have_the_default_protocol_alone() -> None:
    with pytest.raises(UsageError, match="readout is 'head' with protocol 'blob'"):
        OpenBookQADataModule(readout="head", protocol="blob")


def test_laplace_validates_on_the_end_of_train(data_dir: str) -> None:
    data, whole = (WinoGrandeDataModule(data_dir=data_dir, protocol=f"laplace_lora{end}") for end in ("_val", ""))
    assert data.train_questions + data.val_questions == whole.train_questions
    assert (len(data.train_questions), len(data.val_questions)) == (512, 128)
    assert data.questions("winogrande_s") == whole.questions("winogrande_s") == whole.val_questions


def test_blob_neither_shuffles_nor_keeps_a_last_batch_that_is_not_full(data_dir: str, real_tokenizer: Any) -> None:
    tokenizer = real_tokenizer("llama2")
    data = WinoGrandeDataModule(data_dir=data_dir, protocol="blob", tokenizer=tokenizer, batch_size=48)
    train = [batch.example_id.tolist() for batch in data.train_dataloader()]  # type: ignore[union-attr]
    assert train == [list(range(start, start + 48)) for start in range(0, 640 - 47, 48)]
    (test,) = data.test_dataloader()
    assert [len(batch) for batch in test] == [48] * (1267 // 48)
    assert len(data.questions("winogrande_s")) == 1248
    assert data.report()["left_out_of_test"] == {"winogrande_s": 19}
    with pytest.raises(UsageError, match="eval_batch_size is 1268; allowed: 1267 or less"):
        WinoGrandeDataModule(data_dir=data_dir, protocol="blob", eval_batch_size=1268).setup("test")
