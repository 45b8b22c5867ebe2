"""The law of C-LoRA's E and its action: closed forms, limits, and independence of batch, padding and chunk."""

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from bayeslora.errors import UsageError
from bayeslora.models.c_lora import CONTEXTS, ContextualModule, ContextualSites, divergence
from bayeslora.models.loading import Backbone, LoRA, load_answer_model
from bayeslora.models.sites import SiteContext, SiteState
from bayeslora.types import Samples
from tests.helpers.batches import label_token_batch, one, option_row_batch
from tests.helpers.contextual import ALL, RANK, contextual
from tests.helpers.models import save_llama


def module(context: str = "token", rank: int = RANK, seed: int = 0, number: int = 3) -> ContextualModule:
    """One contextual module with random parameters, with a state of its own."""
    made = ContextualModule("site", number, rank, context, 16, SiteContext())
    generator = torch.Generator().manual_seed(seed)
    for parameter in made.parameters():
        parameter.data.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return made


def keyed(rows: int, tokens: int, coherent: bool = False, mask: Tensor | None = None) -> SiteState:
    keys = torch.zeros(rows, dtype=torch.long) if coherent else torch.arange(rows) * 7919
    positions = torch.ones(rows, tokens, dtype=torch.long)
    return SiteState(keys=keys, positions=positions if coherent else positions.cumsum(-1), coherent=coherent, mask=mask)


# --- the divergence --------------------------------------------------------------------------------------------------


def test_divergence_is_torchs() -> None:
    mean, rho = torch.randn(2, 50, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    own = torch.distributions.Normal(mean, torch.sigmoid(rho) ** 2)
    prior = torch.distributions.Normal(0.0, torch.tensor(0.2, dtype=torch.float64))
    torch.testing.assert_close(divergence(mean, rho, 0.2), torch.distributions.kl_divergence(own, prior))


def test_divergence_vanishes_at_the_prior_alone() -> None:
    at_prior = torch.tensor(math.log(math.sqrt(0.2) / (1 - math.sqrt(0.2))), dtype=torch.float64)
    zero = torch.zeros((), dtype=torch.float64)
    assert divergence(zero, at_prior, 0.2).abs() < 1e-15
    for mean, rho in ((zero + 0.01, at_prior), (zero, at_prior + 0.01), (zero, at_prior - 0.01)):
        assert divergence(mean, rho, 0.2) > 1e-6


def test_divergence_of_the_release_at_its_start() -> None:
    value = divergence(torch.zeros(64, dtype=torch.float64), torch.zeros(64, dtype=torch.float64), 0.2)
    assert value[0].item() == pytest.approx(0.05811, abs=5e-6)
    assert value.sum().item() == pytest.approx(3.719, abs=5e-4)


def test_slopes_of_the_divergence() -> None:
    mean, std = torch.tensor([0.3, -1.0], dtype=torch.float64), torch.tensor([0.1, 0.7], dtype=torch.float64)
    root = std.sqrt()
    rho = (root / (1 - root)).log().requires_grad_()
    mean.requires_grad_()
    slopes = torch.autograd.grad(divergence(mean, rho, 0.2).sum(), (mean, rho))
    torch.testing.assert_close(slopes[0], mean / 0.2**2)
    along_rho = 2 * std * (1 - std.sqrt())  # the derivative of sigmoid(rho)^2
    torch.testing.assert_close(slopes[1], (std / 0.2**2 - 1 / std) * along_rho)
    assert torch.autograd.gradcheck(lambda m, r: divergence(m, r, 0.2), (mean, rho))


@pytest.mark.parametrize("extreme", [-50.0, 50.0])
def test_extreme_spreads_keep_finite_values_and_slopes(extreme: float) -> None:
    made = module()
    z = torch.randn(3, 5, RANK, generator=torch.Generator().manual_seed(0))
    z[0, 0] = 0.0  # where the root of the variance has no slope
    made.out.bias.data[RANK**2 :] = extreme
    made.out.weight.data.zero_()
    z.requires_grad_()
    with made.sites.using(keyed(3, 5)):
        output = made(z)
    loss = output.square().sum() + divergence(*made.law(z), 0.2).sum()
    loss.backward()
    assert torch.isfinite(loss)
    assert all(torch.isfinite(p.grad).all() for p in [*made.parameters(), z])


# --- the law of E z --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("context", ["token", "free"])
def test_covariance_of_the_output_of_a_site(context: str) -> None:
    draws, tokens, scale = 200_000, 2, 2.0
    made, up = module(context), torch.randn(6, RANK, generator=torch.Generator().manual_seed(1))
    z = torch.randn(1, tokens, RANK, generator=torch.Generator().manual_seed(2))
    with torch.no_grad(), made.sites.using(keyed(draws, tokens)):
        output = scale * made(z.expand(draws, -1, -1)) @ up.T
        mean, rho = made.law(z)
    matrix = mean.expand(-1, tokens, -1)[0].unflatten(-1, (RANK, RANK))
    std = torch.sigmoid(rho).square().expand(-1, tokens, -1)[0].unflatten(-1, (RANK, RANK))
    for token in range(tokens):
        spread = (std[token].square() * z[0, token].square()).sum(-1).diag()
        expected = scale**2 * up @ spread @ up.T
        found = output[:, token].T.cov()
        assert (found - expected).norm() / expected.norm() < 0.01
        centre = scale * up @ matrix[token] @ z[0, token]
        assert (output[:, token].mean(0) - centre).norm() < 5 * (expected.trace() / draws).sqrt()
    cross = torch.cat([output[:, 0], output[:, 1]], -1).T.cov()[:6, 6:]  # tokens have noise of their own
    assert cross.norm() / expected.norm() < 0.02


def test_drawing_the_product_is_drawing_e() -> None:
    """Mean and covariance of E z with E drawn entry by entry, as the release does."""
    draws, made = 200_000, module()
    z = torch.randn(1, 1, RANK, generator=torch.Generator().manual_seed(2))
    with torch.no_grad(), made.sites.using(keyed(draws, 1)):
        local = made(z.expand(draws, -1, -1))[:, 0]
        mean, rho = made.law(z)
        noise = torch.randn(draws, RANK**2, generator=torch.Generator().manual_seed(3))
        drawn = (mean[0] + torch.sigmoid(rho[0]).square() * noise).unflatten(-1, (RANK, RANK)) @ z[0, 0]
    assert (local.T.cov() - drawn.T.cov()).norm() / drawn.T.cov().norm() < 0.015
    assert (local.mean(0) - drawn.mean(0)).norm() < 5 * (2 * drawn.T.cov().trace() / draws).sqrt()


@pytest.mark.parametrize("context", ["sequence", "last"])
def test_a_row_has_one_e(context: str) -> None:
    made, z = module(context), torch.randn(1, 3, RANK, generator=torch.Generator().manual_seed(2))
    z = torch.cat([z, -2 * z[:, :1]], 1)
    mask = torch.ones(1, 4, dtype=torch.long)
    with torch.no_grad(), made.sites.using(keyed(50, 4, mask=mask)):
        output = made(z.expand(50, -1, -1))
    torch.testing.assert_close(output[:, 3], -2 * output[:, 0])  # linear in z: the same E at all tokens
    assert (output[1:] - output[0]).abs().amax((1, 2)).min() > 1e-4


@pytest.mark.parametrize(("context", "share"), [("sequence", [0.0, 0.5, 0.5, 0.0]), ("last", [0.0, 0.0, 1.0, 0.0])])
def test_a_rows_context_is_of_its_real_tokens(context: str, share: list[float]) -> None:
    made, z = module(context), torch.randn(3, 4, RANK, generator=torch.Generator().manual_seed(2))
    mask = torch.tensor([[0, 1, 1, 0]]).expand(3, -1)
    with torch.no_grad(), made.sites.using(SiteState(mask=mask)):
        mean, _ = made.law(torch.tensor(share) @ z)
        torch.testing.assert_close(made(z), z @ mean.unflatten(-1, (RANK, RANK)).mT)


def test_sites_and_tokens_draw_apart() -> None:
    first, second = module(number=3), module(number=4)
    z = torch.randn(1, 1, RANK, generator=torch.Generator().manual_seed(2)).expand(20_000, 2, -1)
    outputs = []
    for made in (first, second):
        with torch.no_grad(), made.sites.using(keyed(20_000, 2)):
            outputs.append(made(z).flatten(1))
    correlation = torch.corrcoef(torch.cat(outputs, -1).T)
    assert (correlation - torch.eye(4 * RANK)).abs().max() < 5 / 20_000**0.5


@pytest.mark.parametrize("context", CONTEXTS)
def test_a_coherent_draw_is_one_function(context: str) -> None:
    made, z = module(context), torch.randn(1, 1, RANK, generator=torch.Generator().manual_seed(2))
    mask = torch.ones(5, 3, dtype=torch.long)
    with torch.no_grad(), made.sites.using(keyed(5, 3, coherent=True, mask=mask)):
        output = made(z.expand(5, 3, -1))
    torch.testing.assert_close(output, output[:1, :1].expand_as(output))


def test_the_order_of_the_rank_does_not_matter() -> None:
    """B P, P^T A and a module that reads and writes P's order: the update has the same mean and covariance."""
    order = torch.tensor([2, 0, 3, 1])
    entries = (order[:, None] * RANK + order).flatten()
    made, turned = module(), module()
    turned.hidden.weight.data.copy_(made.hidden.weight[:, order])
    turned.out.weight.data.copy_(made.out.weight[torch.cat([entries, entries + RANK**2])])
    turned.out.bias.data.copy_(made.out.bias[torch.cat([entries, entries + RANK**2])])
    up, z = torch.randn(2, 6, RANK, generator=torch.Generator().manual_seed(1)).unbind()

    def moments(made: ContextualModule, up: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        spread = torch.sigmoid(made.law(z)[1]).unflatten(-1, (RANK, RANK)) ** 4 @ z.square()[..., None]
        return made(z) @ up.T, up * spread.mT @ up.T

    torch.testing.assert_close(moments(turned, up[:, order], z[:, order]), moments(made, up, z))


def test_different_inputs_ask_for_different_laws_but_not_without_context() -> None:
    z = torch.randn(2, 1, RANK, generator=torch.Generator().manual_seed(2))
    for context in ("token", "free"):
        mean, rho = module(context).law(z)
        assert torch.equal(mean[0], mean[1]) == torch.equal(rho[0], rho[1]) == (context == "free")


def test_a_module_that_ignores_its_input_is_the_free_one() -> None:
    made, free = module(), module("free")
    made.hidden.weight.data.zero_()
    constant = made.law(torch.zeros(1, RANK))
    free.out.weight.data.copy_(torch.cat(constant, -1).T)
    z = torch.randn(4, 6, RANK, generator=torch.Generator().manual_seed(2))
    for state in (SiteState(), keyed(4, 6), keyed(4, 6, coherent=True)):
        with made.sites.using(state), free.sites.using(state):
            torch.testing.assert_close(made(z), free(z))


def test_the_answer_position_is_its_own_token() -> None:
    z = torch.randn(4, 6, RANK, generator=torch.Generator().manual_seed(2))
    for context in CONTEXTS:
        made, state = module(context), keyed(4, 6, mask=torch.ones(4, 6, dtype=torch.long))
        single = SiteState(keys=state.keys, positions=torch.ones(4, 1, dtype=torch.long), mask=state.mask[:, :1])
        with made.sites.using(state):
            answer = made(z[:, 5])
        with made.sites.using(single):
            torch.testing.assert_close(answer, made(z[:, 5:])[:, 0])


# --- in a model ------------------------------------------------------------------------------------------------------


def test_number_of_parameters(llama: str) -> None:
    model = load_answer_model(Backbone(llama), LoRA(r=8, target_modules=["q_proj", "v_proj"]), seed=0)
    plain = sum(p.numel() for p in model.trainable().values())
    sites = ContextualSites(model)
    for made in sites.modules.values():
        assert sum(p.numel() for p in made.parameters()) == 8896
    assert sum(p.numel() for p in model.trainable().values()) == plain + 4 * 8896
    for rank, count in ((16, 34_368), (4, 2400)):
        made = ContextualModule("site", 0, rank, "token", 64, SiteContext())
        assert sum(p.numel() for p in made.parameters()) == count
    assert sum(p.numel() for p in module("free", 8).parameters()) == 2 * 8**2


def test_number_of_parameters_of_the_papers_model(tmp_path: Path) -> None:
    """Llama-2-7B's 32 layers, q, v and the head: 65 sites, whose modules do not depend on the layers' width."""
    folder = save_llama(tmp_path, layers=32, hidden_size=16, intermediate_size=16)
    model = load_answer_model(Backbone(folder), LoRA(r=8, target_modules=["q_proj", "v_proj", "lm_head"]), seed=0)
    plain = sum(p.numel() for p in model.trainable().values())
    assert len(ContextualSites(model)) == 65
    assert sum(p.numel() for p in model.trainable().values()) == plain + 578_240


@torch.no_grad()
@pytest.mark.parametrize("context", CONTEXTS)
@pytest.mark.parametrize("std", [0.05, 0.7])
def test_initial_law_is_the_one_asked_for(llama: str, context: str, std: float) -> None:
    sites = ContextualSites(load_answer_model(Backbone(llama), LoRA(r=RANK), seed=0), context, width=16)
    sites.initialise("lora", std, 0)
    z = torch.randn(5, RANK, generator=torch.Generator().manual_seed(0))
    for made in sites.modules.values():
        mean, rho = made.law(z)
        torch.testing.assert_close(torch.sigmoid(rho).square(), torch.full((5, RANK**2), std))
        assert torch.equal(mean, torch.eye(RANK).flatten().expand(5, -1))


@torch.no_grad()
@pytest.mark.parametrize("context", CONTEXTS)
def test_starts_at_plain_lora(llama: str, context: str) -> None:
    batch = label_token_batch([5, 9, 7], [4, 3, 5])
    model, _ = contextual(llama, context, "lora", spread=0.0)
    plain = load_answer_model(Backbone(llama), LoRA(r=RANK, alpha=8, target_modules=ALL), seed=0)
    for name, value in plain.trainable().items():
        value.copy_(model.trainable()[name])
    assert torch.equal(model(batch).logits, plain(batch).logits)
    noisy = model(batch, Samples(draws=torch.arange(2))).logits
    assert (noisy - plain(batch).logits).masked_fill(~batch.answer_mask, 0.0).abs().max() > 1e-4


@torch.no_grad()
def test_without_b_the_answer_is_the_bases(llama: str) -> None:
    batch = label_token_batch([5, 9], [4, 3])
    model, _ = contextual(llama)
    for name, value in model.trainable().items():
        if ".lora_B." in name:
            value.zero_()
    noisy = model(batch, Samples(draws=torch.arange(2))).logits
    with model.network.disable_adapter():
        torch.testing.assert_close(noisy, model(batch).logits.expand(2, -1, -1), atol=1e-6, rtol=0)


@torch.no_grad()
def test_no_spread_is_the_mean_for_every_draw(llama: str) -> None:
    batch = label_token_batch([5, 9], [4, 3])
    model, sites = contextual(llama)
    for made in sites.modules.values():
        made.out.weight[RANK**2 :] = 0.0
        made.out.bias[RANK**2 :] = -60.0
    noisy = model(batch, Samples(draws=torch.arange(3))).logits
    torch.testing.assert_close(noisy, model(batch).logits.expand(3, -1, -1))


def test_releases_initial_spread(llama: str) -> None:
    model = load_answer_model(Backbone(llama), LoRA(r=8, target_modules=["q_proj", "v_proj"]), seed=0)
    sites = ContextualSites(model)
    sites.initialise("release", 0.05, 0)
    z = 0.1 * torch.randn(200, 8, generator=torch.Generator().manual_seed(0))
    for made in sites.modules.values():
        mean, rho = made.law(z)
        std = torch.sigmoid(rho).square()
        assert 0.14 < std.min() < std.max() < 0.38
        assert std.mean().item() == pytest.approx(0.25, abs=0.02)
        assert mean.abs().max() < 1


@torch.no_grad()
@pytest.mark.parametrize("context", CONTEXTS)
@pytest.mark.parametrize("coherent", [False, True])
def test_a_question_keeps_its_answer_in_any_batch_padding_and_chunk(llama: str, context: str, coherent: bool) -> None:
    model, _ = contextual(llama, context)
    lengths, options = [5, 19, 7], [4, 3, 5]
    batch = label_token_batch(lengths, options)
    samples = Samples(draws=torch.arange(3), seed=7, coherent=coherent)
    mean, noisy = model(batch).logits, model(batch, samples).logits
    padded = label_token_batch(lengths, options, extra_padding=6)
    torch.testing.assert_close(model(padded).logits, mean, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(model(padded, samples).logits, noisy, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(model(batch, samples, chunk=1).logits, noisy, atol=1e-4, rtol=1e-4)
    for index in range(3):
        alone = model(one(batch, index), samples).logits[:, 0]
        torch.testing.assert_close(alone, noisy[:, index, : alone.shape[-1]], atol=1e-4, rtol=1e-4)
    assert torch.equal(model(batch).logits, mean)  # no draw, no noise
    assert (noisy[1:] - noisy[:1]).masked_fill(~batch.answer_mask, 0.0).abs().max() > 1e-3


@torch.no_grad()
@pytest.mark.parametrize("context", CONTEXTS)
def test_right_padded_rows_of_an_encoder(roberta: str, context: str) -> None:
    model, sites = contextual(roberta, context, readout="head")
    batch, padded = option_row_batch([3, 4, 2]), option_row_batch([3, 4, 2], extra_padding=5)
    samples, kl = Samples(draws=torch.arange(2)), []
    answers = [model(b, samples).logits for b in (batch, padded)]
    torch.testing.assert_close(*answers, atol=1e-4, rtol=1e-4)
    for b in (batch, padded):
        with sites.recording():
            model(b)
        kl.append(sites.divergence(b.attention_mask, 0.2))
    torch.testing.assert_close(*kl, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("quantization", ["4bit", "8bit"])
def test_quantised_bases_take_the_same_path(llama: str, quantization: str) -> None:
    model, sites = contextual(llama, quantization=quantization)
    model.train()
    batch = label_token_batch([5, 9], [4, 3])
    with torch.no_grad():
        together = model(batch, Samples(draws=torch.arange(3))).logits
        apart = torch.cat([model(batch, Samples(draws=torch.tensor([i]))).logits for i in range(3)])
    tolerance = 1e-4 if quantization == "4bit" else 0.2  # 8-bit scales activations by row blocks
    torch.testing.assert_close(together, apart, atol=tolerance, rtol=tolerance)
    with sites.recording():
        logits = model(batch, Samples(draws=torch.tensor([0]))).logits
    (logits[0, :, 0].sum() + sites.divergence(batch.attention_mask, 0.2)).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.trainable().values())
    assert all(p.grad.abs().max() > 0 for name, p in model.trainable().items() if ".out." in name)


def test_weights_of_the_modules_can_be_sampled_too(llama: str) -> None:
    model, _ = contextual(llama)
    batch = label_token_batch([5, 9], [4, 3])
    generator = torch.Generator().manual_seed(5)
    bank = {
        name: value.detach() + 0.1 * torch.randn(3, *value.shape, generator=generator)
        for name, value in model.trainable().items()
    }
    with torch.no_grad():
        together = model(batch, Samples(bank)).logits
        for index in range(3):
            for name, value in model.trainable().items():
                value.copy_(bank[name][index])
            torch.testing.assert_close(together[index], model(batch).logits, atol=1e-4, rtol=1e-4)


def test_contexts_that_do_not_exist(llama: str) -> None:
    model = load_answer_model(Backbone(llama), LoRA(r=RANK), seed=0)
    with pytest.raises(UsageError, match=r"paragraph.*token, sequence, last, free"):
        ContextualSites(model, "paragraph")
