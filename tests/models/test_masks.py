"""A finished mask is what transformers would have made, and nothing is asked of it."""

from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from bayeslora.models.masks import ENCODERS, FINISHED, causal_mask, encoder_mask, finish_encoder_mask

SIZES: dict[str, Any] = {
    **{"vocab_size": 96, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "pad_token_id": 0},
    **{"num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 64, "initializer_range": 0.2},
}


def model(kind: str, attention: str, **options: Any) -> Any:
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **{**SIZES, **options}, attn_implementation=attention)
    return AutoModelForCausalLM.from_config(config).eval()


@pytest.mark.parametrize("padded", [True, False])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("kind", FINISHED)
@torch.no_grad()
def test_logits_are_those_of_the_plain_mask(kind: str, attention: str, padded: bool) -> None:
    own = model(kind, attention)
    ids = torch.randint(1, 96, (3, 9), generator=torch.Generator().manual_seed(1))
    lengths = torch.tensor([9, 6, 2] if padded else [9, 9, 9])
    mask = (torch.arange(9) >= 9 - lengths[:, None]).long()
    finished = causal_mask(own.config, mask, torch.float32)
    assert finished.shape == (3, 1, 9, 9)
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    plain, ours = (
        own(input_ids=ids, attention_mask=given, position_ids=positions).logits[:, -1] for given in (mask, finished)
    )
    torch.testing.assert_close(ours, plain, atol=1e-6, rtol=1e-5)
    assert not torch.allclose(ours[0], ours[1], atol=1e-3)


@pytest.mark.parametrize(
    "kind, attention, options",
    [
        ("llama", "flash_attention_2", {}),
        ("gpt2", "sdpa", {}),
        ("mistral", "sdpa", {"sliding_window": 9}),
    ],
)
def test_others_keep_the_plain_mask(kind: str, attention: str, options: dict[str, Any]) -> None:
    config = AutoConfig.for_model(kind, **options)
    config._attn_implementation = attention
    mask = torch.ones(2, 9, dtype=torch.long)
    assert causal_mask(config, mask, torch.float32) is mask


@pytest.mark.parametrize("padded", [True, False])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("kind", ENCODERS)
@torch.no_grad()
def test_encoders_see_what_they_see_with_the_plain_mask(kind: str, attention: str, padded: bool) -> None:
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **SIZES, embedding_size=32, attn_implementation=attention)
    own = AutoModel.from_config(config).eval()
    ids = torch.randint(3, 96, (3, 9), generator=torch.Generator().manual_seed(1))
    lengths = torch.tensor([9, 6, 2] if padded else [9, 9, 9])
    mask = (torch.arange(9) < lengths[:, None]).long()
    given: list[Any] = []
    layers = own.get_submodule("encoder.layer")
    layers[0].register_forward_pre_hook(
        lambda _, args, kwargs: given.append((*args, *kwargs.values())), with_kwargs=True
    )
    plain = own(input_ids=ids, attention_mask=mask).last_hidden_state[:, 0]
    own.register_forward_pre_hook(finish_encoder_mask, with_kwargs=True)
    given.clear()
    ours = own(input_ids=ids, attention_mask=mask).last_hidden_state[:, 0]
    torch.testing.assert_close(ours, plain, atol=1e-5, rtol=1e-5)
    assert any(
        isinstance(value, torch.Tensor) and value.shape == (3, 1, 9, 9) for value in given[-1]
    )  # asked of nobody


def test_other_encoders_keep_the_plain_mask() -> None:
    mask = torch.ones(2, 9, dtype=torch.long)
    for kind, attention in (("bert", "flash_attention_2"), ("deberta-v2", "eager")):
        config = AutoConfig.for_model(kind)
        config._attn_implementation = attention
        assert encoder_mask(config, mask, torch.float32) is mask
