"""Stacked members against peft, Gram matrices against products, batches of their own in one pass."""

from pathlib import Path

import pytest
import torch

from bayeslora import Backbone, LoRA, LoRAEnsemble, Samples
from bayeslora.models.loading import load_answer_model
from bayeslora.models.members import backpropagate, product_norms
from bayeslora.posteriors.point import Point
from bayeslora.posteriors.state import save_posterior
from tests.helpers.batches import label_token_batch, option_row_batch

TARGETS = ["q_proj", "v_proj", "lm_head"]


def ensemble(llama: str, members: int = 3, **lora: object) -> LoRAEnsemble:
    """Members with weights that are not zero anywhere."""
    module = LoRAEnsemble(Backbone(llama), LoRA(r=4, target_modules=TARGETS, **lora), members)
    module.configure_model()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in module.trainable().values():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return module


def test_product_norms_are_those_of_the_products() -> None:
    generator = torch.Generator().manual_seed(0)
    shapes = {"x.lora_A.weight": (3, 4, 7), "x.lora_B.weight": (3, 9, 4), "y.lora_A.weight": (3, 4, 5)}
    shapes |= {"y.lora_B.weight": (3, 6, 4), "head.bias": (3, 2)}
    parameters = {
        name: torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()
        for name, shape in shapes.items()
    }
    direct = torch.stack(
        [(parameters[f"{n}.lora_B.weight"] @ parameters[f"{n}.lora_A.weight"]).square().sum((1, 2)) for n in "xy"]
    ).sum(0)
    gram = product_norms(parameters)
    torch.testing.assert_close(gram, direct, rtol=1e-10, atol=0)
    trained = [value for name, value in parameters.items() if "lora" in name]
    for ours, theirs in zip(*(torch.autograd.grad(f[1], trained) for f in (gram, direct)), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)
        assert (ours[[0, 2]] == 0).all()


def test_backpropagated_losses_give_the_gradient_of_their_sum() -> None:
    one, two = torch.tensor([1.0, 2.0], requires_grad=True), torch.tensor([3.0], requires_grad=True)
    losses = [lambda: one.square().sum(), lambda: (one * two).sum()]
    loss = backpropagate(losses, [one, two])
    (loss / 2).backward()
    assert loss.item() == 14
    assert one.grad.tolist() == [2.5, 3.5]
    assert two.grad.tolist() == [1.5]


@pytest.mark.parametrize("readout", ["label_token", "head"])
def test_batches_of_their_own_are_answered_as_if_alone(llama: str, roberta: str, readout: str) -> None:
    if readout == "head":
        backbone, lora = Backbone(roberta, readout="head"), LoRA(r=4, dropout=0.2, target_modules=["query", "value"])
        batches = [option_row_batch([3, 4, 2], seed=1), option_row_batch([4, 3, 2], seed=2)]
    else:
        backbone, lora = Backbone(llama), LoRA(r=4, dropout=0.2, target_modules=TARGETS)
        batches = [label_token_batch([9, 5, 7], [3, 4, 2], seed=1), label_token_batch([6, 12, 3], [5, 5, 2], seed=2)]
    model = load_answer_model(backbone, lora, seed=0)
    generator = torch.Generator().manual_seed(4)
    weights = {n: torch.randn(2, *p.shape, generator=generator) * 0.2 for n, p in model.trainable().items()}
    samples = Samples(weights, torch.tensor([5, 11]), seed=7)
    both = model.forward_each(batches, samples).logits
    for index, batch in enumerate(batches):
        alone = model(batch, samples[index : index + 1]).logits[0]
        torch.testing.assert_close(both[index, :, : alone.shape[1]], alone, atol=1e-5, rtol=1e-4)
        assert both[index, :, alone.shape[1] :].isinf().all()
    other = model.forward_each(batches[::-1], samples).logits
    assert not torch.allclose(other[1][:, :2], both[0][:, :2], atol=1e-3)


def test_gradients_of_one_members_loss_are_its_own(llama: str) -> None:
    module = ensemble(llama)
    module.support = "options"
    batches = [label_token_batch([9, 5], [3, 4], seed=seed) for seed in range(3)]
    losses = module.member_losses([0, 1, 2], batches)
    for gradient in torch.autograd.grad(losses[1], list(module.trainable().values())):
        assert (gradient[[0, 2]] == 0).all()
        assert (gradient[1] != 0).any()


def test_members_are_plain_peft_adapters(llama: str, tmp_path: Path) -> None:
    """Stacked, one adapter after another, and peft's mixed batches answer the same."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    module = ensemble(llama)
    batch = label_token_batch([7, 7, 7], [4, 4, 4])
    ours = module.answer_logits(batch)
    names = [f"m{index}" for index in range(3)]
    for index, name in enumerate(names):
        point = Point(module.member_parameters(index))
        save_posterior(point, tmp_path / name, module.model.adapter_config)
    network = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(llama), tmp_path / "m0", "m0")
    for name in names[1:]:
        network.load_adapter(tmp_path / name, name)
    network.eval()
    with torch.no_grad():
        for index, name in enumerate(names):
            network.set_adapter(name)
            theirs = network(batch.input_ids, attention_mask=batch.attention_mask).logits[:, -1]
            torch.testing.assert_close(theirs.gather(-1, batch.answer_ids), ours[index], atol=1e-5, rtol=1e-5)
        mixed = {"input_ids": batch.input_ids.repeat(3, 1), "attention_mask": batch.attention_mask.repeat(3, 1)}
        rows = [name for name in names for _ in range(3)]
        together = network(**mixed, adapter_names=rows).logits[:, -1].view(3, 3, -1)
    torch.testing.assert_close(together.gather(-1, batch.answer_ids.expand(3, -1, -1)), ours, atol=1e-5, rtol=1e-5)


def test_divergence_from_the_base(llama: str) -> None:
    module = ensemble(llama, 2)
    module.support = "options"
    batches = [label_token_batch([9, 5], [3, 4], seed=seed) for seed in range(2)]
    plain = module.member_losses([0, 1], batches)
    module.kl_to_base = 0.7
    extra = (module.member_losses([0, 1], batches) - plain) / 0.7
    for index, batch in enumerate(batches):
        own = module.answer_logits(batch)[index].log_softmax(-1)
        with module.model.network.disable_adapter():
            base = module.model(batch).logits.log_softmax(-1)
        direct = torch.nn.functional.kl_div(base, own, reduction="none", log_target=True)
        direct = direct.masked_fill(~batch.answer_mask, 0.0).sum(-1).mean()
        torch.testing.assert_close(extra[index], direct, atol=1e-5, rtol=1e-4)
    gradients = torch.autograd.grad(extra.sum(), list(module.trainable().values()), allow_unused=True)
    assert all(gradient.isfinite().all() for gradient in gradients if gradient is not None)


def test_a_pass_of_many_members_dispatches_hardly_more_operations_than_one(llama: str) -> None:
    from torch.utils._python_dispatch import TorchDispatchMode

    class Count(TorchDispatchMode):
        calls = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            Count.calls += function not in VIEWS
            return function(*args, **(kwargs or {}))

    aten = torch.ops.aten
    VIEWS = {aten.view.default, aten.detach.default, aten.transpose.int, aten.t.default, aten.slice.Tensor}
    VIEWS |= {aten._unsafe_view.default, aten.select.int, aten.unsqueeze.default, aten.expand.default}
    calls = {}
    for members in (1, 5):
        module = ensemble(llama, members)
        module.support = "options"
        batches = [label_token_batch([9, 5, 7], [3, 4, 2], seed=seed) for seed in range(members)]
        Count.calls = 0
        with Count():
            module.member_losses(list(range(members)), batches).sum().backward()
        calls[members] = Count.calls
    assert 0 < calls[5] <= 1.1 * calls[1], calls
