"""The limits in which every method is another one: the base, plain LoRA, a single member, no temperature."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from bayeslora import Backbone, BLoBModule, CLoRAModule, LoRA, LoRAEnsemble, LoRAModule, Predictive, ScalaBLModule
from bayeslora.callbacks.posterior import bank_predictor
from bayeslora.errors import UsageError
from bayeslora.lightning_modules.bare_base import BareBase
from bayeslora.lightning_modules.multiple_choice import MultipleChoiceModule
from bayeslora.models.c_lora import CONTEXTS
from bayeslora.models.sites import SiteDropout
from bayeslora.posteriors.tfb import TFBPosterior
from bayeslora.types import AnswerBatch
from tests.helpers.batches import label_token_batch

BATCH = label_token_batch([5, 9, 7], [4, 3, 5])
Made = tuple[MultipleChoiceModule, Callable[[AnswerBatch], Predictive]]


def made(kind: type[MultipleChoiceModule], dropout: float = 0.0, up: float = 0.1, **options: Any) -> Made:
    """A module that predicts sample by sample, whose B has entries of size ``up``, and how it predicts."""
    module = kind(Backbone("embedded"), LoRA(dropout=dropout), seed=1, chunk=1, **options)
    module.configure_model()
    source = torch.Generator().manual_seed(0)
    for name, parameter in module.trainable().items():
        if name.endswith(".lora_B.weight"):
            parameter.data.copy_(up * torch.randn(parameter.shape, generator=source))
    return module, module.predictive


def tfb(sigma: float, up: float) -> Made:
    """Training-free noise on a plain adapter."""
    module, _ = made(LoRAModule, up=up)
    posterior = TFBPosterior.around(module.weight_sets()[0]).scaled(sigma)
    return module, bank_predictor(module, posterior.sample(3, torch.Generator().manual_seed(0)), None)


def logits(predictive: Predictive) -> torch.Tensor:
    assert predictive.logits is not None
    return predictive.logits.masked_fill(~BATCH.answer_mask, 0.0)


def without_spread(module: MultipleChoiceModule) -> None:
    """No standard deviation anywhere: BLoB's is G squared, C-LoRA's the sigmoid of rho squared, ScalaBL's has a log."""
    for name, parameter in module.trainable().items():
        if name.endswith(".std_root"):
            parameter.data.zero_()
        elif name.endswith(".log_scale_std"):
            parameter.data.fill_(-torch.inf)
        elif name.endswith((".lora_E.out.bias", ".lora_E.out.weight")):
            rho = parameter.data[len(parameter) // 2 :]
            rho.fill_(-200.0 if rho.dim() == 1 or rho.shape[1] == 1 else 0.0)


FROM_THE_BASE: dict[str, Callable[[], Made]] = {
    "mle": lambda: made(LoRAModule, up=0.0),
    "mc_dropout": lambda: made(LoRAModule, dropout=0.3, up=0.0, samples=3),
    "blob": lambda: made(BLoBModule, up=0.0, samples=3, init_std=0.3),
    "blob_flipout": lambda: made(BLoBModule, up=0.0, samples=3, init_std=0.3, predict="flipout"),
    "scalabl": lambda: made(ScalaBLModule, up=0.0, samples=3, init_std=0.3),
    "tfb": lambda: tfb(0.3, up=0.0),
} | {f"c_lora_{c}": lambda c=c: made(CLoRAModule, up=0.0, samples=3, init_std=0.3, context=c) for c in CONTEXTS}


@torch.no_grad()
@pytest.mark.parametrize("method", FROM_THE_BASE)
def test_without_b_the_answer_is_the_bases_bit_for_bit(method: str) -> None:
    module, predict = FROM_THE_BASE[method]()
    sampled = logits(predict(BATCH))
    with module.model.network.disable_adapter():
        base = logits(module.sampled(BATCH, None))
    assert len(sampled) == (1 if method == "mle" else 3)
    assert torch.equal(sampled, base.expand_as(sampled))


FROM_LORA: dict[str, Callable[[], Made]] = {
    "blob": lambda: made(BLoBModule, samples=3),
    "blob_flipout": lambda: made(BLoBModule, samples=3, predict="flipout"),
    "bbb": lambda: made(BLoBModule, samples=3, factors="AB"),
    "scalabl": lambda: made(ScalaBLModule, samples=3),
    "tfb": lambda: tfb(0.0, up=0.1),
} | {f"c_lora_{c}": lambda c=c: made(CLoRAModule, samples=3, context=c) for c in CONTEXTS}


@torch.no_grad()
@pytest.mark.parametrize("method", FROM_LORA)
def test_without_spread_every_draw_is_plain_lora_bit_for_bit(method: str) -> None:
    plain, _ = made(LoRAModule)
    module, predict = FROM_LORA[method]()
    for name, value in module.weight_sets()[0].items():  # ScalaBL starts at other A's
        if name in plain.trainable():
            plain.trainable()[name].copy_(value)
    if method != "tfb":
        assert logits(predict(BATCH)).std(0).max() > 1e-4  # what is taken away was there
    without_spread(module)
    sampled = logits(predict(BATCH))
    assert len(sampled) == 3
    assert torch.equal(sampled, logits(plain.predictive(BATCH)).expand_as(sampled))


@torch.no_grad()
@pytest.mark.parametrize("kind", ["blob", "blob_flipout", "c_lora"])
def test_draws_of_a_law_are_no_draws_of_dropout(kind: str) -> None:
    options = {"predict": "flipout"} if kind == "blob_flipout" else {}
    module, predict = made(CLoRAModule if kind == "c_lora" else BLoBModule, dropout=0.5, samples=3, **options)
    without_spread(module)
    sampled = logits(predict(BATCH))
    assert torch.equal(sampled, logits(module.sampled(BATCH, None)).expand_as(sampled))
    trained = module.model(BATCH, module.training_noise()).logits[0].masked_fill(~BATCH.answer_mask, 0.0)
    assert (trained - sampled[0]).abs().max() > 1e-3  # in training there is dropout


@torch.no_grad()
def test_dropout_of_no_rate_is_maximum_likelihood() -> None:
    module, predict = made(LoRAModule, dropout=0.3, samples=3)
    assert logits(predict(BATCH)).std(0).max() > 1e-4
    for site in module.model.modules():
        if isinstance(site, SiteDropout):
            site.p = 0.0
    sampled = logits(predict(BATCH))
    assert torch.equal(sampled, logits(module.sampled(BATCH, None)).expand_as(sampled))


@torch.no_grad()
def test_an_ensemble_of_one_member_three_times_is_that_member() -> None:
    plain, _ = made(LoRAModule)
    ensemble, predict = made(LoRAEnsemble, members=3)
    for name, parameter in ensemble.trainable().items():
        parameter.copy_(plain.trainable()[name].expand_as(parameter))
    alone, together = plain.predictive(BATCH), predict(BATCH)
    torch.testing.assert_close(together.probs, alone.probs, atol=1e-12, rtol=0)
    assert len(together.log_probs) == 3
    assert together.epistemic.abs().max() < 1e-12


@torch.no_grad()
def test_a_temperature_of_one_changes_nothing_and_no_temperature_the_answer() -> None:
    _, predict = made(LoRAModule)
    plain = predict(BATCH)
    torch.testing.assert_close(plain.tempered(1.0).probs, plain.probs, atol=1e-12, rtol=0)
    for temperature in (0.2, 5.0):
        tempered = plain.tempered(temperature)
        assert torch.equal(tempered.probs.argmax(-1), plain.probs.argmax(-1))
        assert (tempered.probs - plain.probs).abs().max() > 1e-3


@torch.no_grad()
@pytest.mark.parametrize("kind", [LoRAModule, BLoBModule, CLoRAModule, ScalaBLModule])
def test_the_bare_base_is_asked_once(kind: type[MultipleChoiceModule]) -> None:
    dropout = 0.3 if kind is LoRAModule else 0.0
    module = kind(Backbone("embedded"), LoRA(dropout=dropout), samples=3, seed=1)  # type: ignore[call-arg]
    base = BareBase.of(module)
    base.configure_model()
    assert base.method == "base"
    assert base.predictive(BATCH).log_probs.shape[0] == 1
    with pytest.raises(UsageError, match="the bare base has none"):
        base.weight_sets()
