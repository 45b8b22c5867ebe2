"""The answer model against Hugging Face's own forward, against peft, and against itself in other batches."""

from pathlib import Path

import pytest
import torch

from bayeslora.errors import UsageError
from bayeslora.models.loading import Backbone, LoRA, load_answer_model
from bayeslora.types import AnswerBatch, Samples
from tests.helpers.batches import label_token_batch, one, option_row_batch
from tests.helpers.models import save_llama

ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "lm_head"]


def trained(path: str, seed: int = 0, targets: object = None, **backbone: object):
    """A model whose B matrices are not zero any more."""
    model = load_answer_model(Backbone(path, **backbone), LoRA(dropout=0.2, target_modules=targets or ALL), seed)
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.trainable().items():
        if ".lora_B." in name:
            parameter.data.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model


@torch.no_grad()
def test_label_token_logits_equal_hugging_faces_head(llama: str) -> None:
    model, batch = trained(llama), label_token_batch([5, 9, 7], [4, 3, 5])
    output = model(batch, vocabulary="logits")
    reference = model.network(
        input_ids=batch.input_ids,
        attention_mask=batch.attention_mask,
        position_ids=(batch.attention_mask.cumsum(-1) - 1).clamp(min=0),
    ).logits[:, -1]
    torch.testing.assert_close(output.vocab_logits, reference, atol=1e-5, rtol=1e-5)
    expected = reference.gather(-1, batch.answer_ids).masked_fill(~batch.answer_mask, -torch.inf)
    torch.testing.assert_close(output.logits, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(output.logsumexp, reference.logsumexp(-1), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(model(batch, vocabulary="logsumexp").logsumexp, output.logsumexp)


@torch.no_grad()
def test_a_question_alone_equals_itself_in_any_batch(llama: str) -> None:
    model, batch = trained(llama), label_token_batch([5, 19, 7, 11], [4, 3, 5, 2])
    together = model(batch).logits
    noisy = model(batch, Samples(draws=torch.arange(3), seed=7)).logits
    for index in range(4):
        torch.testing.assert_close(model(one(batch, index)).logits[0], together[index], atol=1e-5, rtol=1e-5)
        alone = model(one(batch, index), Samples(draws=torch.arange(3), seed=7)).logits[:, 0]
        torch.testing.assert_close(alone, noisy[:, index], atol=1e-5, rtol=1e-5)
    padded = model(label_token_batch([5, 19, 7, 11], [4, 3, 5, 2], extra_padding=6)).logits
    torch.testing.assert_close(padded, together, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_head_readout_scores_each_option_as_in_any_batch(roberta: str) -> None:
    model = trained(roberta, targets=["query", "value"], readout="head")
    batch = option_row_batch([3, 4, 2])
    logits = model(batch).logits
    assert logits.isinf().equal(~batch.answer_mask)
    hugging_face = model.network.get_base_model()(
        input_ids=batch.input_ids[:, None], attention_mask=batch.attention_mask[:, None]
    ).logits
    torch.testing.assert_close(logits[batch.answer_mask], hugging_face.flatten(), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(model(option_row_batch([3, 4, 2], extra_padding=7)).logits, logits, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(logits[0, 0], logits[0, 1])


@torch.no_grad()
def test_sequence_classifier(roberta: str) -> None:
    model = trained(roberta, targets=["query", "value"], readout="head", num_labels=3)
    batch = option_row_batch([1, 1, 1, 1])
    batch = AnswerBatch(**{**vars(batch), "answer_mask": torch.ones(4, 3, dtype=torch.bool)})
    reference = model.network.get_base_model()(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
    torch.testing.assert_close(model(batch).logits, reference)


@pytest.mark.parametrize("quantization", ["none", "8bit", "4bit"])
@torch.no_grad()
def test_fan_out_equals_one_pass_a_sample(llama: str, quantization: str) -> None:
    model = trained(llama, quantization=quantization)
    batch, samples = label_token_batch([5, 9, 7], [4, 3, 5]), _samples(model, 4)
    together = model(batch, samples, vocabulary="logsumexp")
    apart = [model(batch, samples[i : i + 1], vocabulary="logsumexp") for i in range(4)]
    torch.testing.assert_close(together.logits, torch.cat([o.logits for o in apart]), atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(together.logsumexp, torch.cat([o.logsumexp for o in apart]), atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(model(batch, samples, chunk=3).logits, together.logits, atol=1e-6, rtol=1e-6)


@torch.no_grad()
def test_fan_out_equals_loading_each_sample(llama: str) -> None:
    model, batch = trained(llama), label_token_batch([5, 9, 7], [4, 3, 5])
    weights = _samples(model, 3).weights
    together = model(batch, Samples(weights)).logits
    for index in range(3):
        for name, parameter in model.trainable().items():
            parameter.data.copy_(weights[name][index])
        torch.testing.assert_close(model(batch).logits, together[index], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("site", ["layers.1.mlp.down_proj.lora_B", "lm_head.lora_A", "lm_head.lora_B"])
@torch.no_grad()
def test_layers_below_the_first_sampled_site_run_once(tmp_path: Path, site: str) -> None:
    model, batch = trained(save_llama(tmp_path, layers=3)), label_token_batch([5, 9, 7], [4, 3, 5])
    rows: list[int] = []
    for layer in model.fan_out.layers:
        layer.register_forward_hook(lambda module, args, output: rows.append(len(output)))
    weights = {n: w for n, w in _samples(model, 5).weights.items() if site in n}
    together = model(batch, Samples(weights)).logits
    assert rows == ([3, 15, 15] if "layers.1" in site else [3, 3, 3])
    apart = torch.cat([model(batch, Samples(weights)[i : i + 1]).logits for i in range(5)])
    torch.testing.assert_close(together, apart, atol=1e-6, rtol=1e-6)
    assert len({tuple(row) for row in together[:, 0].tolist()}) == 5


@torch.no_grad()
def test_fan_out_of_an_encoder(roberta: str) -> None:
    model = trained(roberta, targets=["query", "value"], readout="head")
    batch, samples = option_row_batch([3, 4, 2]), _samples(model, 3)
    together = model(batch, samples).logits
    apart = torch.cat([model(batch, samples[i : i + 1]).logits for i in range(3)])
    torch.testing.assert_close(together, apart, atol=1e-6, rtol=1e-6)


def _samples(model, n: int) -> Samples:
    generator = torch.Generator().manual_seed(5)
    weights = {
        name: p.detach() + 0.05 * torch.randn(n, *p.shape, generator=generator) for name, p in model.trainable().items()
    }
    return Samples(weights, torch.arange(n), seed=3)


@pytest.mark.parametrize("quantization", ["none", "8bit", "4bit"])
def test_every_site_gets_a_gradient_after_an_evaluation(llama: str, quantization: str) -> None:
    model, batch = trained(llama, quantization=quantization), label_token_batch([5, 9, 7], [4, 3, 5])
    model.eval()
    with torch.no_grad():
        model(batch)
    model.train()
    torch.nn.functional.cross_entropy(model(batch).logits, batch.label).backward()
    for name, parameter in model.trainable().items():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_gradient_checkpointing_is_on_and_exact(llama: str) -> None:
    batch, gradients, calls = label_token_batch([5, 9, 7], [4, 3, 5]), [], []
    for checkpointing in (False, True):
        model = trained(llama, gradient_checkpointing=checkpointing).train()
        samples = Samples(draws=torch.tensor([11]), seed=2)
        count: list[int] = []
        for layer in model.fan_out.layers:
            layer.self_attn.register_forward_hook(lambda *args, count=count: count.append(1))
        loss = torch.nn.functional.cross_entropy(model(batch, samples).logits[0], batch.label)
        model(batch, Samples(draws=torch.tensor([12]), seed=2))  # a later pass must not disturb the recomputation
        passes = len(count)
        loss.backward()
        calls.append(len(count) - passes)
        gradients.append({name: p.grad for name, p in model.trainable().items()})
    assert calls == [0, 2]
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, atol=0, rtol=0)


def test_an_adapter_saved_here_loads_in_plain_peft(llama: str, tmp_path: Path) -> None:
    import peft
    from transformers import AutoModelForCausalLM

    from bayeslora.posteriors.point import Point
    from bayeslora.posteriors.state import save_posterior

    model, batch = trained(llama), label_token_batch([5, 9, 7], [4, 3, 5])
    config = {**model.network.peft_config["default"].to_dict(), "inference_mode": True}
    save_posterior(Point(model.trainable()), tmp_path / "posterior", config)
    plain = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(llama), tmp_path / "posterior")
    alone = one(batch, 1)
    with torch.no_grad():
        logits = plain(input_ids=alone.input_ids).logits[0, -1, alone.answer_ids[0, :3]]
        torch.testing.assert_close(logits, model(alone).logits[0, :3], atol=1e-5, rtol=1e-5)
        again = load_answer_model(Backbone(llama, adapter=str(tmp_path / "posterior")), LoRA(), 0)
        torch.testing.assert_close(again(batch).logits, model(batch).logits, atol=0, rtol=0)


def test_initial_weights_belong_to_the_seed_and_the_global_state_is_left_alone(llama: str) -> None:
    before = torch.random.get_rng_state()
    first, same, other = (
        load_answer_model(Backbone(llama), LoRA(target_modules=ALL), s).trainable() for s in (1, 1, 2)
    )
    assert torch.equal(before, torch.random.get_rng_state())
    for name, value in first.items():
        assert torch.equal(value, same[name])
        assert torch.equal(value, other[name]) == (".lora_B." in name)
        if ".lora_A." in name:
            assert value.abs().max() <= value.shape[1] ** -0.5


def test_fingerprint_tells_bases_apart_whatever_their_quantisation(llama: str, tmp_path: Path) -> None:
    prints = {
        q: load_answer_model(Backbone(llama, quantization=q), LoRA(), 0).base_fingerprint for q in ("none", "4bit")
    }
    other = load_answer_model(Backbone(save_llama(tmp_path, seed=1)), LoRA(), 0).base_fingerprint
    assert prints["none"] == prints["4bit"] != other


@pytest.mark.parametrize(
    ("backbone", "lora", "match"),
    [
        ({"quantization": "3bit"}, {}, "3bit.*none, 8bit, 4bit"),
        ({"readout": "generate"}, {}, "generate.*label_token, head"),
        ({}, {"r": 0}, "lora.r is 0"),
        ({}, {"dropout": 1.0}, "lora.dropout is 1.0"),
        ({"pretrained": "no/such-model"}, {}, "no/such-model.*HF_HUB_OFFLINE"),
        ({"adapter": "no/such/adapter"}, {}, "no/such/adapter.*peft adapter"),
        ({}, {"target_modules": ["no_such_layer"]}, "no_such_layer"),
    ],
)
def test_bad_input_is_one_clear_line(llama: str, backbone: dict, lora: dict, match: str) -> None:
    with pytest.raises(UsageError, match=match) as error:
        load_answer_model(Backbone(**{"pretrained": llama, **backbone}), LoRA(**lora), 0)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("layers", "extra", "match"),
    [(3, {}, "4 of its weights are missing"), (1, {}, "4 .* of another base"), (2, {"x.lora_E.w": 1}, "1 .* plain")],
)
def test_an_adapter_is_read_as_a_whole(llama: str, tmp_path: Path, layers: int, extra: dict, match: str) -> None:
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "adapter"
    lora = LoRA(target_modules=["q_proj", "v_proj"])
    load_answer_model(Backbone(llama), lora, 0).network.save_pretrained(folder)
    file = folder / "adapter_model.safetensors"
    save_file({**load_file(file), **{f"base_model.model.{n}": torch.zeros(v) for n, v in extra.items()}}, file)
    base = llama if extra else save_llama(tmp_path / "base", layers=layers)
    with pytest.raises(UsageError, match=match):
        load_answer_model(Backbone(base, adapter=str(folder)), LoRA(), 0)
    if extra:
        load_answer_model(Backbone(base, adapter=str(folder)), LoRA(), 0, own=(".lora_E.",))


def test_dora_is_refused_by_name(llama: str, tmp_path: Path) -> None:
    import peft
    from transformers import AutoModelForCausalLM

    config = peft.LoraConfig(task_type="CAUSAL_LM", use_dora=True, target_modules=["q_proj"])
    peft.get_peft_model(AutoModelForCausalLM.from_pretrained(llama), config).save_pretrained(tmp_path)
    with pytest.raises(UsageError, match="Dora"):
        load_answer_model(Backbone(llama, adapter=str(tmp_path)), LoRA(), 0)


def test_samples_of_what_no_site_has_are_refused(tmp_path: Path) -> None:
    """An adapter with trained biases: their values would be left out, and the answers be those of the model's own."""
    import peft
    from transformers import AutoModelForCausalLM

    path = save_llama(tmp_path / "base", attention_bias=True)
    config = peft.LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj"], bias="all")
    peft.get_peft_model(AutoModelForCausalLM.from_pretrained(path), config).save_pretrained(str(tmp_path / "adapter"))
    model = load_answer_model(Backbone(path, adapter=str(tmp_path / "adapter")), LoRA(), 0)
    every = {name: torch.stack([value.detach()] * 2) for name, value in model.trainable().items()}
    lora = {name: value for name, value in every.items() if ".lora_" in name}
    batch = label_token_batch([5, 9], [4, 3])
    assert model(batch, Samples(lora)).logits.shape == (2, 2, 4)
    with pytest.raises(UsageError, match="bias is trained, and is no linear map's of LoRA or a head"):
        model(batch, Samples(every))
