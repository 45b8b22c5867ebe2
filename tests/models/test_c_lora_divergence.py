"""The divergence of C-LoRA's laws over one pass: its sum, what it does not depend on, and whom its gradient reaches."""

import pytest
import torch
from torch import Tensor

from bayeslora.models.answer_model import AnswerModel
from bayeslora.models.c_lora import CONTEXTS, ContextualSites
from bayeslora.types import AnswerBatch, Samples
from tests.helpers.batches import label_token_batch, one
from tests.helpers.contextual import contextual


def kl_of(model: AnswerModel, sites: ContextualSites, batch: AnswerBatch, over: str = "mean") -> Tensor:
    with sites.recording():
        model(batch, Samples(draws=torch.tensor([4])))
    return sites.divergence(batch.attention_mask, 0.2, over)


@pytest.mark.parametrize("context", CONTEXTS)
def test_padding_does_not_change_the_divergence_but_the_releases(llama: str, context: str) -> None:
    model, sites = contextual(llama, context)
    batches = [label_token_batch([5, 9], [4, 3], extra_padding=extra) for extra in (0, 6)]
    torch.testing.assert_close(*(kl_of(model, sites, batch) for batch in batches), atol=1e-4, rtol=1e-4)
    plain, padded = (kl_of(model, sites, batch, "release") for batch in batches)
    assert padded > plain * 1.2 or context != "token"


def test_a_batchs_divergence_is_the_mean_of_its_questions(llama: str) -> None:
    model, sites = contextual(llama)
    batch = label_token_batch([5, 12], [4, 3])
    alone = [kl_of(model, sites, one(batch, index)) for index in range(2)]
    torch.testing.assert_close(kl_of(model, sites, batch), sum(alone) / 2, atol=1e-4, rtol=1e-4)


def test_divergence_adds_up_over_sites_and_tokens(llama: str) -> None:
    """Against the formula applied to every site's own contexts."""
    model, sites = contextual(llama)
    batch = label_token_batch([6, 6], [4, 3])
    with sites.recording():
        model(batch)
    expected = torch.zeros(())
    for made in sites.modules.values():
        mean, rho = made.law(made.recorded)
        law = torch.distributions.Normal(mean, torch.sigmoid(rho) ** 2)
        expected = expected + torch.distributions.kl_divergence(law, torch.distributions.Normal(0, 0.2)).sum(-1).mean()
    torch.testing.assert_close(sites.divergence(batch.attention_mask, 0.2), expected)


@pytest.mark.parametrize("context", CONTEXTS)
def test_the_bound_holds_the_divergence_of_every_e_that_is_drawn(llama: str, context: str) -> None:
    """Padded rows of 5 and 9 tokens: one divergence a real token where each draws an E, one a row where a row does."""
    model, sites = contextual(llama, context)
    batch = label_token_batch([5, 9], [4, 3])
    with sites.recording():
        model(batch)
    expected = torch.zeros(())
    for made in sites.modules.values():
        mean, rho = made.law(made.recorded)
        law = torch.distributions.Normal(mean, torch.sigmoid(rho) ** 2)
        values = torch.distributions.kl_divergence(law, torch.distributions.Normal(0, 0.2)).sum(-1)  # [R, draws]
        each = context in ("token", "free") and made.block  # the head sees one token a row; of FE all have one law
        real = batch.attention_mask if each else torch.ones_like(values)
        expected = expected + (values * real).sum(-1).mean()
    torch.testing.assert_close(sites.divergence(batch.attention_mask, 0.2, "draws"), expected)


@pytest.mark.parametrize("context", CONTEXTS)
def test_the_bound_holds_the_divergences_of_all_rows_of_a_question(llama: str, context: str) -> None:
    """As of an encoder, which scores every option as a row: each has E's of its own, and they are one question's."""
    model, sites = contextual(llama, context)
    batch, found = label_token_batch([5, 9, 6, 7], [4, 4, 4, 4]), []
    for questions in (None, 2):
        with sites.recording():
            model(batch)
        found.append(sites.divergence(batch.attention_mask, 0.2, "draws", questions))
    torch.testing.assert_close(found[1], 2 * found[0])


def test_a_run_in_mixed_precision_has_the_divergence_in_single(llama: str) -> None:
    model, sites = contextual(llama)
    batch, found = label_token_batch([5, 9], [4, 3]), []
    for mixed in (False, True):
        with sites.recording():
            model(batch)
        with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
            found.append(sites.divergence(batch.attention_mask, 0.2))
    assert torch.equal(*found)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_whom_the_divergences_gradient_reaches(llama: str, checkpointing: bool) -> None:
    for over in ("mean", "draws", "release"):
        model, sites = contextual(llama, gradient_checkpointing=checkpointing)
        model.train()
        kl_of(model, sites, label_token_batch([5, 9], [4, 3]), over).backward()
        reached = {name for name, p in model.trainable().items() if p.grad is not None and p.grad.abs().max() > 0}
        parts = {kind: {n for n in model.trainable() if f".lora_{kind}." in n} for kind in "ABE"}
        if over == "release":  # every A, and the B's that some site lies above
            assert parts["A"] | parts["E"] <= reached
            assert parts["B"] & reached
        else:
            assert reached == parts["E"]


def test_checkpointing_changes_no_gradient(llama: str) -> None:
    found = []
    for checkpointing in (False, True):
        model, sites = contextual(llama, gradient_checkpointing=checkpointing)
        model.train()
        batch = label_token_batch([5, 9], [4, 3])
        with sites.recording():
            logits = model(batch, Samples(draws=torch.tensor([4]))).logits
        kl = sites.divergence(batch.attention_mask, 0.2, "release")
        model(batch, Samples(draws=torch.tensor([5])))  # a later pass must not disturb the recomputation
        (torch.nn.functional.cross_entropy(logits[0], batch.label) + kl).backward()
        found.append({name: p.grad for name, p in model.trainable().items()})
    assert found[0].keys() == found[1].keys()
    for name, gradient in found[0].items():
        torch.testing.assert_close(gradient, found[1][name], msg=name)
