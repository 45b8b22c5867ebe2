"""The density of the gold posterior is the package's own forward pass, and its prior is what it says."""

from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from bayeslora import Backbone, LoRA, SyntheticDataModule
from bayeslora.models.answer_model import AnswerModel
from bayeslora.models.loading import load_answer_model
from bayeslora.types import AnswerBatch, Samples

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
SITES = ["layers.1.self_attn.q_proj", "layers.1.self_attn.v_proj"]


@pytest.fixture(autouse=True)
def path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))


@dataclass(frozen=True)
class Case:
    model: AnswerModel
    batch: AnswerBatch
    weights: dict[str, Tensor]


def answering(targets: list[str], r: int = 2) -> AnswerModel:
    return load_answer_model(Backbone("embedded"), LoRA(r=r, alpha=2 * r, target_modules=targets), seed=0)


@pytest.fixture(scope="module")
def batch() -> AnswerBatch:
    data = SyntheticDataModule(labels=15, batch_size=4, eval_batch_size=12, seed=0)
    data.setup("fit")
    (found,) = data.train_eval_dataloader()
    assert not found.attention_mask.bool().all()  # some are padded
    return found  # type: ignore[no-any-return]


@pytest.fixture(scope="module", params=[1, 2])
def case(request: pytest.FixtureRequest, batch: AnswerBatch) -> Case:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        from gold.last_layer import widen

        model = widen(answering(SITES, r=request.param))
    generator = torch.Generator().manual_seed(0)
    weights = {
        name: 0.3 * torch.randn(3, *p.shape, generator=generator, dtype=torch.float64)
        for name, p in model.trainable().items()
    }
    return Case(model, batch, weights)


def test_logits_are_those_of_the_package(case: Case) -> None:
    from gold.last_layer import cache

    found = cache(case.model, [case.batch]).logits(case.weights)
    with torch.no_grad():
        expected = case.model(case.batch, Samples(weights=case.weights)).logits
        spread = expected.std(0).mean()
    assert spread > 0.1  # the adapters matter
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)


def test_gradients_are_those_of_the_package(case: Case) -> None:
    from gold.last_layer import cache

    layer = cache(case.model, [case.batch])
    weights = {name: w.clone().requires_grad_() for name, w in case.weights.items()}
    found = torch.autograd.grad(layer.log_likelihood(weights).sum(), list(weights.values()))
    logits = case.model(case.batch, Samples(weights=weights)).logits.log_softmax(-1)
    label = case.batch.label.expand(3, -1)[..., None]
    expected = torch.autograd.grad(logits.gather(-1, label).sum(), list(weights.values()))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-9)


def test_norms_in_float64_change_what_float32_rounds(batch: AnswerBatch) -> None:
    from gold.last_layer import widen

    plain, wide = answering(SITES), widen(answering(SITES))
    with torch.no_grad():
        torch.testing.assert_close(plain.eval()(batch).logits.double(), wide(batch).logits, rtol=0, atol=1e-4)


def test_absent_options_have_no_probability(case: Case) -> None:
    from gold.last_layer import cache

    mask = case.batch.answer_mask.clone()
    mask[0, -1] = False
    logits = cache(case.model, [replace(case.batch, answer_mask=mask)]).logits(case.weights)
    assert (logits[:, 0, -1] == -torch.inf).all()
    assert logits[:, 1:].isfinite().all()


def test_adapters_elsewhere_are_refused(batch: AnswerBatch) -> None:
    from gold.last_layer import cache, widen

    with pytest.raises(ValueError, match="last layer"):
        cache(widen(answering(["q_proj", "v_proj"])), [batch])


@pytest.mark.parametrize("sampled, share", [("AB", 1.0), ("B", 0.5)])
def test_the_density_is_likelihood_and_prior(case: Case, sampled: str, share: float) -> None:
    from gold.last_layer import cache
    from gold.posterior import Target

    initial = {name: p.detach() for name, p in case.model.trainable().items()}
    target = Target(cache(case.model, [case.batch]), initial, 0.3, sampled)
    assert target.size == share * sum(w[0].numel() for w in case.weights.values())
    weights = case.weights
    if sampled == "B":
        weights = {n: w if "lora_B" in n else initial[n].expand_as(w) for n, w in weights.items()}
    z = target.whiten(weights)
    expected = target.network.log_likelihood(weights) - z.square().sum(-1) / 2
    torch.testing.assert_close(target(z), expected)
    free = [w for n, w in weights.items() if sampled == "AB" or "lora_B" in n]
    prior = sum(torch.distributions.Normal(0, 0.3).log_prob(w).flatten(1).sum(-1) for w in free)
    torch.testing.assert_close((-z.square().sum(-1) / 2).diff(), prior.diff())


def test_the_last_layer_alone_and_the_whole_model_are_one_density(case: Case) -> None:
    from gold.last_layer import cache
    from gold.network import WholeModel
    from gold.posterior import Target

    initial = {name: p.detach() for name, p in case.model.trainable().items()}
    networks = (cache(case.model, [case.batch]), WholeModel(case.model, case.batch))
    quick, plain = (Target(network, initial, 0.3) for network in networks)
    z = quick.whiten(case.weights).requires_grad_()
    values = [target(z) for target in (quick, plain)]
    torch.testing.assert_close(*values, rtol=0, atol=1e-9)
    torch.testing.assert_close(*(torch.autograd.grad(value.sum(), z)[0] for value in values), rtol=0, atol=1e-9)


def test_adapters_of_both_layers_are_in_the_posterior() -> None:
    from gold.network import products
    from gold.setting import Setting, problem, small

    given = problem(small(Setting(layers=2)))
    assert given.target.size == 4 * 2 * 128  # A and B of four projections
    z = torch.randn(2, given.target.size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert products(given.target.weights(z)).shape == (2, 4, 128, 128)
    likelihood = given.target(z) + z.square().sum(-1) / 2
    for name in given.target.initial:
        weights = given.target.weights(z)
        weights[name] = torch.zeros_like(weights[name])
        assert (given.target.network.log_likelihood(weights) - likelihood).abs().min() > 1e-4, name


def test_training_raises_the_likelihood(case: Case) -> None:
    from gold.last_layer import cache
    from gold.posterior import Target, trained

    initial = {name: p.detach() for name, p in case.model.trainable().items()}
    target = Target(cache(case.model, [case.batch]), initial, 0.3)
    start = target.whiten({name: value[None] for name, value in initial.items()})
    end = trained(target, start, 20)
    before, after = (target.network.log_likelihood(target.weights(z)) for z in (start, end))
    assert float(after) > float(before) + 1
