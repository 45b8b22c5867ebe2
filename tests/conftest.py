"""Shared fixtures: tiny random models and batches of random questions."""

import os
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
import torch

from bayeslora.types import AnswerBatch

VOCABULARY = 96
HIDDEN = 64


def save_llama(folder: Path, layers: int = 2, seed: int = 0, **changes: object) -> str:
    """A random Llama of a few thousand parameters, saved as Hugging Face models are."""
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"vocab_size": VOCABULARY, "hidden_size": HIDDEN, "intermediate_size": 128, "num_hidden_layers": layers}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256}
    torch.manual_seed(seed)
    model = LlamaForCausalLM(LlamaConfig(**{**sizes, **heads, "initializer_range": 0.2, **changes}))
    model.save_pretrained(folder)
    return str(folder)


def save_roberta(folder: Path, seed: int = 0) -> str:
    """A random RoBERTa encoder."""
    from transformers import RobertaConfig, RobertaModel

    torch.manual_seed(seed)
    config = RobertaConfig(
        vocab_size=VOCABULARY,
        hidden_size=HIDDEN,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=80,
        initializer_range=0.2,
    )
    RobertaModel(config).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Folder of a tiny random Llama."""
    return save_llama(tmp_path_factory.mktemp("models") / "llama")


@pytest.fixture(scope="session")
def roberta(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Folder of a tiny random RoBERTa."""
    return save_roberta(tmp_path_factory.mktemp("models") / "roberta")


def label_token_batch(lengths: list[int], options: list[int], seed: int = 0, extra_padding: int = 0) -> AnswerBatch:
    """Random questions of given lengths and option counts, one left-padded row each."""
    generator = torch.Generator().manual_seed(seed)
    width, most = max(lengths) + extra_padding, max(options)
    ids = torch.zeros(len(lengths), width, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, length in enumerate(lengths):
        ids[row, width - length :] = torch.randint(10, VOCABULARY, (length,), generator=generator)
        mask[row, width - length :] = 1
    answer_mask = torch.arange(most) < torch.tensor(options)[:, None]
    rows = torch.arange(len(lengths))
    return AnswerBatch(
        input_ids=ids,
        attention_mask=mask,
        example_of_row=rows,
        option_of_row=torch.zeros_like(rows),
        answer_ids=torch.arange(3, 3 + most).expand(len(lengths), -1) * answer_mask,
        answer_mask=answer_mask,
        label=torch.zeros_like(rows),
        example_id=rows.clone(),
        dataset="random",
    )


def option_row_batch(options: list[int], seed: int = 0, extra_padding: int = 0) -> AnswerBatch:
    """Random questions whose options are right-padded rows of their own."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(4, 12, (sum(options),), generator=generator).tolist()
    width = max(lengths) + extra_padding
    ids = torch.ones(len(lengths), width, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, length in enumerate(lengths):
        ids[row, :length] = torch.randint(10, VOCABULARY, (length,), generator=generator)
        mask[row, :length] = 1
    answer_mask = torch.arange(max(options)) < torch.tensor(options)[:, None]
    example = torch.repeat_interleave(torch.arange(len(options)), torch.tensor(options))
    option = torch.cat([torch.arange(n) for n in options])
    zeros = torch.zeros(len(options), dtype=torch.long)
    return AnswerBatch(
        input_ids=ids,
        attention_mask=mask,
        example_of_row=example,
        option_of_row=option,
        answer_ids=torch.zeros_like(answer_mask, dtype=torch.long),
        answer_mask=answer_mask,
        label=zeros,
        example_id=torch.arange(len(options)),
        dataset="random",
    )
