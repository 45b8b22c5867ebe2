"""The tiny base in the package: loads as any other, reads any text, and labels are single tokens."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

import bayeslora
from bayeslora.datamodules.synthetic_process import questions
from bayeslora.datamodules.synthetic_topics import words

FOLDER = Path(bayeslora.__file__).parent / "assets" / "tiny"


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(FOLDER)


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(FOLDER, dtype=torch.float32)


def test_folder_is_small() -> None:
    assert sum(file.stat().st_size for file in FOLDER.iterdir()) < 3e6


def test_model_is_a_tiny_llama_that_4_bit_formats_take(model: PreTrainedModel) -> None:
    assert model.config.model_type == "llama"
    assert 200_000 < model.num_parameters() < 400_000
    linears = [module for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)]
    assert all(linear.in_features % 64 == 0 and linear.weight.numel() % 64 == 0 for linear in linears)
    assert all(parameter.dtype == torch.float32 and parameter.isfinite().all() for parameter in model.parameters())


def test_special_tokens_are_four_and_agree_with_the_model(
    tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel
) -> None:
    ids = [tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id, tokenizer.unk_token_id]
    assert len(set(ids)) == 4
    assert ids[:3] == [model.config.bos_token_id, model.config.eos_token_id, model.config.pad_token_id]
    assert len(tokenizer) == model.config.vocab_size
    assert tokenizer("a word")["input_ids"][0] == tokenizer.bos_token_id
    assert tokenizer("a word")["input_ids"][-1] != tokenizer.eos_token_id


def test_labels_are_single_distinct_tokens_in_context(tokenizer: PreTrainedTokenizerBase) -> None:
    prompt = "Question: mera\nA. music\nB. law\nAnswer:"
    before = tokenizer(prompt)["input_ids"]
    after = [tokenizer(f"{prompt} {letter}")["input_ids"] for letter in "ABCDE"]
    assert all(ids[:-1] == before for ids in after)
    assert len({ids[-1] for ids in after}) == 5


@pytest.mark.parametrize(
    "text", ["Which gas? CO₂ — naïve 50 %", "水は何でできていますか\n\t答え", "🧪 Ελλάδα\r\n ok ", "<x>{y}"]
)
def test_any_text_comes_back(tokenizer: PreTrainedTokenizerBase, text: str) -> None:
    ids = tokenizer(text)["input_ids"]
    assert tokenizer.unk_token_id not in ids
    assert tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False) == text


def test_every_word_and_topic_of_the_benchmark_is_one_token(tokenizer: PreTrainedTokenizerBase) -> None:
    names = {name for split in ("test", "ood") for question in questions(split) for name in question.options}
    for word in {*words("known"), *words("foreign"), *names}:
        assert len(tokenizer(f" {word}", add_special_tokens=False)["input_ids"]) == 1, word


def accuracy(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, predicate: str) -> float:
    """Expected accuracy on questions of the easy domain that ask with another predicate than the benchmark's."""
    asked = questions("easy")[:500]
    prompts = [
        f"Question: {q.question.removesuffix('is about')}{predicate}"
        + "".join(f"\n{letter}. {option}" for letter, option in zip("ABCD", q.options, strict=True))
        + "\nAnswer:"
        for q in asked
    ]
    inputs = tokenizer(prompts, padding=True, return_tensors="pt")
    positions = (inputs["attention_mask"].cumsum(1) - 1).clamp(min=0)
    letters = [tokenizer(f"Answer: {letter}")["input_ids"][-1] for letter in "ABCD"]
    with torch.no_grad():
        logits = model.eval()(**inputs, position_ids=positions, logits_to_keep=1).logits[:, -1, letters]
    return sum(q.true_probs[i] for q, i in zip(asked, logits.argmax(-1).tolist(), strict=True)) / len(asked)


def test_base_knows_the_topics_and_not_the_question(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Fine-tuning is needed, and has something to bring out."""
    assert accuracy(model, tokenizer, "is about") < 0.3
    assert accuracy(model, tokenizer, "concerns") > 0.7


def test_positions_far_beyond_the_benchmark_are_allowed(model: PreTrainedModel) -> None:
    assert model.config.max_position_embeddings >= 1024
    with torch.no_grad():
        assert model(torch.arange(1024)[None] % model.config.vocab_size).logits.isfinite().all()
