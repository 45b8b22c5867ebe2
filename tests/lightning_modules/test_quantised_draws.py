"""BLoB's and C-LoRA's draws on quantised bases: the same noise as on a plain one, there when asked for and not else."""

from typing import Any

import pytest
import torch

from bayeslora import Backbone, BLoBModule, CLoRAModule, LoRA, ScalaBLModule
from bayeslora.models.fan_out import site_state
from bayeslora.streams import stream
from bayeslora.types import Samples
from tests.helpers.batches import label_token_batch

pytest.importorskip("bitsandbytes")
Module = BLoBModule | CLoRAModule | ScalaBLModule
BATCH = label_token_batch([5, 9, 7], [4, 3, 5])
METHODS: dict[str, tuple[type[Module], dict[str, Any]]] = {
    "blob": (BLoBModule, {"predict": "weights"}),
    "blob_flipout": (BLoBModule, {"predict": "flipout"}),
    "c_lora": (CLoRAModule, {"context": "token"}),
    "c_lora_sequence": (CLoRAModule, {"context": "sequence"}),
    "scalabl": (ScalaBLModule, {}),
}
QUANTIZATIONS = ["4bit", "8bit"]


def made(method: str, quantization: str) -> Module:
    """A module whose B is not zero, with three draws."""
    kind, options = METHODS[method]
    module = kind(Backbone("embedded", quantization=quantization), LoRA(), init_std=0.3, samples=3, seed=1, **options)
    module.configure_model()
    source = torch.Generator().manual_seed(0)
    for name, parameter in module.trainable().items():
        if ".lora_B." in name:
            parameter.data.copy_(0.1 * torch.randn(parameter.shape, generator=source))
    return module


def draws(module: Module) -> Samples:
    """What the module predicts with."""
    drawn = None if isinstance(module, CLoRAModule) else module.test_samples()
    return drawn or Samples(draws=torch.arange(3), seed=stream(module.seed, "test"))


@torch.no_grad()
def updates(module: Module) -> dict[str, torch.Tensor]:
    """What LoRA adds to the output of every adapted layer, at inputs of its own, for every draw."""
    samples = draws(module)
    rows, tokens = BATCH.input_ids.shape
    layers = {n: m for n, m in module.model.network.named_modules() if hasattr(m, "base_layer")}
    found = {}
    with module.model.context.using(site_state(BATCH, samples)):
        for name, layer in layers.items():
            source = torch.Generator().manual_seed(len(name))
            x = torch.randn(len(samples) * rows, tokens, layer.in_features, generator=source)
            found[name] = layer(x) - layer.base_layer(x)
    return found


@pytest.mark.parametrize("quantization", QUANTIZATIONS)
@pytest.mark.parametrize("method", METHODS)
def test_a_draw_adds_what_it_adds_to_a_plain_base(method: str, quantization: str) -> None:
    quantised, plain = made(method, quantization), made(method, "none")
    kinds = {type(m.base_layer).__module__ for m in quantised.model.network.modules() if hasattr(m, "base_layer")}
    assert all(kind.startswith("bitsandbytes") for kind in kinds)
    own, expected = updates(quantised), updates(plain)
    assert len(own) == len(expected) == 14
    for name, update in expected.items():
        assert update.view(3, -1).std(0).mean() > 0.01  # draws differ
        torch.testing.assert_close(own[name], update, atol=1e-4, rtol=1e-4, msg=name)


@torch.no_grad()
@pytest.mark.parametrize("quantization", QUANTIZATIONS)
@pytest.mark.parametrize("method", METHODS)
def test_sampling_is_switched_on_and_off(method: str, quantization: str) -> None:
    module = made(method, quantization)
    before = module.model(BATCH).logits
    sampled = module.predictive(BATCH).log_probs
    assert (sampled.std(0)[BATCH.answer_mask] > 1e-3).all()
    assert torch.equal(module.predictive(BATCH).log_probs, sampled)
    module.samples = 0
    mean = module.predictive(BATCH).log_probs
    assert torch.equal(mean, before[None].double().log_softmax(-1))
    assert torch.equal(module.predictive(BATCH).log_probs, mean)
    module.samples = 3
    assert torch.equal(module.predictive(BATCH).log_probs, sampled)


@pytest.mark.parametrize("quantization", QUANTIZATIONS)
@pytest.mark.parametrize("method", METHODS)
def test_every_parameter_is_trained_through_a_draw(method: str, quantization: str) -> None:
    module = made(method, quantization)
    with torch.no_grad():
        module.predictive(BATCH)  # an evaluation in between leaves the gradients whole
    module.model.train()
    module.nll(BATCH, module.training_noise()).backward()
    for name, parameter in module.trainable().items():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().max() > 0 or ".hidden." in name, name  # its output weights start at zero
