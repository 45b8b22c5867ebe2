"""Jacobians from hooks against autograd row by row, finite differences and invariances; prediction by them."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import peft
import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from bayeslora.curvature.jacobian import contrast_jacobian, linearised_predictive
from bayeslora.errors import UsageError
from bayeslora.models.loading import Backbone, LoRA, load_answer_model
from bayeslora.types import Predictive, Samples
from tests.helpers.batches import label_token_batch, option_row_batch
from tests.helpers.jacobians import by_autograd
from tests.helpers.models import ALL, exact, save_llama, trained

TIGHT = {"atol": 1e-10, "rtol": 1e-10}


def assert_same(found: Mapping[str, Tensor], expected: Mapping[str, Tensor], **tolerance: float) -> None:
    assert list(found) == list(expected)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, **tolerance, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("targets", [["q_proj", "v_proj"], ["lm_head"], ALL])
def test_equals_autograd_row_by_row(llama: str, targets: list[str]) -> None:
    model, batch = exact(llama, targets), label_token_batch([5, 9, 7], [4, 3, 5])
    logits, jacobian = contrast_jacobian(model, batch, dtype=torch.float64)
    torch.testing.assert_close(logits, model(batch).logits.detach())
    assert_same(jacobian, by_autograd(model, batch), **TIGHT)
    assert all(value[1, 2:].eq(0).all() for value in jacobian.values())  # the second question has three options
    assert all(value[1, :2].ne(0).any() for value in jacobian.values())


def test_equals_central_differences(llama: str) -> None:
    model, batch = exact(llama), label_token_batch([5, 9], [3, 4])
    jacobian = contrast_jacobian(model, batch, dtype=torch.float64)[1]
    generator, step = torch.Generator().manual_seed(1), 1e-5
    for name, parameter in model.trainable().items():
        direction = torch.randn(parameter.shape, dtype=torch.float64, generator=generator)
        ends = [
            model(batch, Samples({name: (parameter + sign * step * direction)[None].detach()})).logits[0]
            for sign in (1, -1)
        ]
        slope = ((ends[0] - ends[1]) / (2 * step)).detach()
        expected = (slope[:, 1:] - slope[:, :1]).masked_fill(~batch.answer_mask[:, 1:], 0.0)
        found = (jacobian[name] * direction).flatten(2).sum(-1)
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-6)


def test_padding_and_batch_do_not_matter(llama: str) -> None:
    model = exact(llama)
    together = contrast_jacobian(model, label_token_batch([5, 9, 7], [4, 3, 5]), dtype=torch.float64)[1]
    wide = label_token_batch([5, 9, 7], [4, 3, 5], extra_padding=6)
    assert_same(contrast_jacobian(model, wide, dtype=torch.float64)[1], together, **TIGHT)
    for index in range(3):
        row = slice(index, index + 1)
        alone = replace(wide, **{n: v[row] for n, v in vars(wide).items() if isinstance(v, Tensor)})
        alone = replace(alone, example_of_row=torch.zeros(1, dtype=torch.long))
        expected = {name: value[row] for name, value in together.items()}
        assert_same(contrast_jacobian(model, alone, dtype=torch.float64)[1], expected, **TIGHT)


def test_permuted_options_permute_the_logits_derivatives(llama: str) -> None:
    model, batch = exact(llama), label_token_batch([5, 9], [4, 4])
    order = torch.tensor([2, 0, 3, 1])
    jacobian = contrast_jacobian(model, batch, dtype=torch.float64)[1]
    permuted = contrast_jacobian(model, replace(batch, answer_ids=batch.answer_ids[:, order]), dtype=torch.float64)[1]
    for name, value in jacobian.items():
        logits = torch.cat([torch.zeros_like(value[:, :1]), value], 1)[:, order]  # up to what all options share
        torch.testing.assert_close(permuted[name], logits[:, 1:] - logits[:, :1], **TIGHT)


@pytest.mark.parametrize("quantization", ["8bit", "4bit"])
def test_quantised_bases(llama: str, quantization: str) -> None:
    model, batch = trained(llama, quantization=quantization), label_token_batch([5, 9, 7], [4, 3, 5])
    jacobian = contrast_jacobian(model, batch)[1]
    assert_same(jacobian, by_autograd(model, batch), atol=1e-4, rtol=1e-4)


def test_gradient_checkpointing_is_on_and_exact(llama: str) -> None:
    batch = label_token_batch([5, 9, 7], [4, 3, 5])
    expected = contrast_jacobian(exact(llama), batch, dtype=torch.float64)[1]
    model, calls = exact(llama, gradient_checkpointing=True), []
    for layer in model.fan_out.layers:
        layer.self_attn.register_forward_hook(lambda *_: calls.append(1))
    assert_same(contrast_jacobian(model, batch, dtype=torch.float64)[1], expected, **TIGHT)
    assert len(calls) == 2  # eval mode keeps its activations
    model.train()
    assert_same(contrast_jacobian(model, batch, dtype=torch.float64)[1], expected, **TIGHT)
    assert len(calls) == 2 + 2 + 4 * 2  # a forward pass, and once again for each of four contrasts


@pytest.mark.parametrize("num_labels", [None, 3])
def test_an_encoders_head_with_its_biases(roberta: str, num_labels: int | None) -> None:
    model = exact(roberta, ["query", "value"], readout="head", num_labels=num_labels)
    options = [1, 1, 1] if num_labels else [3, 4, 2]
    batch, wide = option_row_batch(options), option_row_batch(options, extra_padding=5)
    if num_labels:
        classes = torch.ones(3, num_labels, dtype=torch.bool)
        batch, wide = replace(batch, answer_mask=classes), replace(wide, answer_mask=classes)
    jacobian = contrast_jacobian(model, batch, dtype=torch.float64)[1]
    assert any("classifier" in name and name.endswith("bias") for name in jacobian)
    assert_same(jacobian, by_autograd(model, batch), **TIGHT)
    assert_same(contrast_jacobian(model, wide, dtype=torch.float64)[1], jacobian, **TIGHT)


def test_a_choice_of_names_and_a_dtype(llama: str) -> None:
    model, batch = trained(llama), label_token_batch([5, 9], [4, 3])
    everything = contrast_jacobian(model, batch, dtype=torch.bfloat16)[1]
    names = [name for name in everything if "layers.1.self_attn.v_proj" in name or "lm_head.lora_A" in name]
    assert_same(contrast_jacobian(model, batch, names)[1], {n: contrast_jacobian(model, batch)[1][n] for n in names})
    assert {value.dtype for value in everything.values()} == {torch.bfloat16}
    with torch.autocast("cpu", torch.bfloat16):
        assert {value.dtype for value in contrast_jacobian(model, batch, names)[1].values()} == {torch.float32}


def test_works_where_gradients_are_off_and_leaves_nothing_behind(llama: str) -> None:
    model, batch = trained(llama), label_token_batch([5, 9], [4, 3])
    expected = contrast_jacobian(model, batch)[1]
    with torch.inference_mode():
        assert_same(contrast_jacobian(model, batch.map(torch.clone))[1], expected)
    with torch.no_grad():
        assert_same(contrast_jacobian(model, batch)[1], expected)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())


def test_parameters_outside_linear_layers_are_refused_by_name(llama: str) -> None:
    model, batch = trained(llama), label_token_batch([5, 9], [4, 3])
    name = "base_model.model.model.norm.weight"
    model.network.get_parameter(name).requires_grad_(True)
    with pytest.raises(UsageError, match=r"norm\.weight.*linear layers"):
        contrast_jacobian(model, batch)
    with pytest.raises(UsageError, match="no such parameter"):
        contrast_jacobian(model, batch, ["no such parameter"])
    with pytest.raises(UsageError, match="no parameter at all"):
        contrast_jacobian(model, batch, [])
    contrast_jacobian(model, batch, [n for n in model.trainable() if n != name])


def test_a_head_that_is_trained_in_full_is_refused(llama: str, tmp_path: Path) -> None:
    config = peft.LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"], modules_to_save=["lm_head"])
    peft.get_peft_model(AutoModelForCausalLM.from_pretrained(llama), config).save_pretrained(tmp_path)
    with pytest.raises(UsageError, match=r"lm_head in full.*LoRA alone"):
        load_answer_model(Backbone(llama, adapter=str(tmp_path)), LoRA(), 0)


def test_a_head_of_which_rows_are_trained_is_refused(tmp_path: Path) -> None:
    tied = save_llama(tmp_path / "tied", tie_word_embeddings=True)
    config = peft.LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"], trainable_token_indices=[5, 6])
    adapter = str(tmp_path / "adapter")
    peft.get_peft_model(AutoModelForCausalLM.from_pretrained(tied), config).save_pretrained(adapter)
    with pytest.raises(UsageError, match=r"trainable_token_indices.*LoRA alone"):
        load_answer_model(Backbone(tied, adapter=adapter), LoRA(), 0)


def test_linear_layers_used_in_another_way_are_refused_by_name(llama: str) -> None:
    batch, targets = label_token_batch([5, 9], [4, 3]), ["q_proj"]
    model = trained(llama, targets)
    layer = model.fan_out.layers[1].self_attn.q_proj
    layer.lora_A["default"].register_forward_pre_hook(lambda site, args: args[0].flatten(0, 1))
    layer.lora_B["default"].register_forward_hook(lambda site, args, output: output.unflatten(0, (2, -1)))
    with pytest.raises(UsageError, match=r"layers\.1\.self_attn\.q_proj\.lora_A\.weight.*row by row"):
        contrast_jacobian(model, batch)


class Independent:
    """A toy Gaussian: every parameter by itself, all with one variance."""

    family = "independent"

    def __init__(self, mean: Mapping[str, Tensor], variance: float) -> None:
        self._mean, self.variance = {n: p.detach().clone() for n, p in mean.items()}, variance

    def mean(self) -> dict[str, Tensor]:
        return self._mean

    def sample(self, n: int, generator: torch.Generator) -> dict[str, Tensor]:
        scale = self.variance**0.5
        return {k: m + scale * torch.randn(n, *m.shape, generator=generator) for k, m in self._mean.items()}

    def logit_covariance(self, jacobian: Mapping[str, Tensor]) -> Tensor:
        return sum(self.variance * torch.einsum("bcoi,bdoi->bcd", j, j) for j in jacobian.values())


def test_linearised_prediction_without_variance_is_the_softmax(llama: str) -> None:
    model, batch = trained(llama), label_token_batch([5, 9, 7], [4, 3, 5])
    predictive = linearised_predictive(model, batch, Independent(model.trainable(), 0.0))
    logits = model(batch).logits.detach()
    torch.testing.assert_close(predictive.probs, logits.double().softmax(-1), atol=1e-6, rtol=1e-6)
    assert predictive.gaussian.mean.isinf().equal(~batch.answer_mask[:, 1:])
    assert predictive.epistemic.max() < 1e-12


def test_linearised_prediction_agrees_with_sampled_weights_of_small_variance(llama: str) -> None:
    model, batch = trained(llama), label_token_batch([5, 9, 7], [4, 3, 5])
    posterior = Independent(model.trainable(), 1e-5)
    law = linearised_predictive(model, batch, posterior).gaussian
    n = 2000
    with torch.no_grad():
        samples = Samples(posterior.sample(n, torch.Generator().manual_seed(0)))
        logits = torch.cat([model(batch, samples[i : i + 100]).logits for i in range(0, n, 100)])
    contrasts = (logits[..., 1:] - logits[..., :1]).masked_fill(~batch.answer_mask[:, 1:], 0.0).double()
    for b in range(3):
        spread = law.cov[b].diagonal().double()
        error = (spread[:, None] * spread + law.cov[b].double().square()).div(n).sqrt()  # of a normal law's covariance
        assert ((contrasts[:, b].T.cov() - law.cov[b]).abs() <= 5 * error + 0.02 * law.cov[b].abs().max()).all()
    sampled = Predictive.from_logits(logits)
    torch.testing.assert_close(linearised_predictive(model, batch, posterior).probs, sampled.probs, atol=2e-3, rtol=0)
    assert (law.cov.diagonal(dim1=1, dim2=2)[batch.answer_mask[:, 1:]] > 0).all()
