"""Tiny random models, as Hugging Face saves them and as the package loads them."""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from bayeslora.models.answer_model import AnswerModel
from bayeslora.models.loading import Backbone, LoRA, load_answer_model
from tests.helpers.sizes import HIDDEN, VOCABULARY


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


ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "lm_head"]


def trained(path: str, targets: list[str] = ALL, **backbone: Any) -> AnswerModel:
    """A model whose B matrices are not zero any more, in eval mode."""
    model = load_answer_model(Backbone(path, **backbone), LoRA(r=4, target_modules=targets), 0)
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.trainable().items():
        if ".lora_B." in name:
            parameter.data.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def exact(path: str, targets: list[str] = ALL, **backbone: Any) -> AnswerModel:
    """The same in float64 throughout: Llama's own norm would round to float32."""
    model = trained(path, targets, **backbone)
    for name, module in list(model.network.named_modules()):
        if type(module).__name__ == "LlamaRMSNorm":
            norm = nn.RMSNorm(len(module.weight), eps=module.variance_epsilon)
            norm.weight = module.weight
            model.network.set_submodule(name, norm)
    return model.double()
