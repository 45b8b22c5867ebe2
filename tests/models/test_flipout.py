"""Perturbations with signs of their own for every token: law, padding, fan-out, recomputation."""

import pytest
import torch

from bayeslora.models.blob import draw_perturbations
from bayeslora.models.loading import Backbone, LoRA, load_answer_model
from bayeslora.models.noise import Tokens, positions_from_last, signs
from bayeslora.models.sites import SiteContext, SiteLinear, SiteState
from bayeslora.posteriors.mean_field import normal_kl
from bayeslora.types import Samples
from tests.helpers.batches import label_token_batch


def site(weight: torch.Tensor) -> SiteLinear:
    linear = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False, dtype=weight.dtype)
    linear.weight.data = weight
    return SiteLinear.adopt(linear, "site", 0, SiteContext())


def test_signs_are_fair_and_independent() -> None:
    keys = torch.arange(500) * 7919 + 3
    flips = signs(Tokens(keys, torch.arange(1, 21).expand(500, -1)), 5, 70, torch.float64)
    assert flips.shape == (500, 20, 70)
    flat = flips.flatten(0, 1)
    assert flat.mean(0).abs().max() < 4.5 / 100  # 10,000 tokens
    correlation = flat.T @ flat / len(flat) - torch.eye(70)
    assert correlation.abs().max() < 5.5 / 100  # also of channels that share a word
    assert (flips[:, 1:] * flips[:, :-1]).mean((0, 1)).abs().max() < 4.5 / 100


@pytest.mark.parametrize("rows", [1, 2])
def test_noise_of_a_token_has_the_weights_own_covariance(rows: int) -> None:
    """Cov = s^2 B diag_i(sum_j x_j^2 Omega_ij^2) B^T for one token to 1 %, zero between two of a row or of two rows."""
    torch.manual_seed(0)
    draws, rank, width, out, scale = 200_000, 3, 5, 4, 2.0
    x, std, up = torch.randn(2, width).double(), torch.rand(rank, width).double(), torch.randn(out, rank).double()
    linear = site(torch.zeros(rank, width).double())
    noise = std * torch.randn(draws, rank, width).double()
    keys = torch.arange(draws * rows) * 48271 + 11
    positions = torch.tensor([[2, 1]] if rows == 1 else [[1], [1]]).repeat(draws, 1)
    state = SiteState(groups=draws, keys=keys, positions=positions, perturbations={"site.weight": noise})
    with linear.context.using(state):
        y = scale * linear(x.view(rows, -1, width).repeat(draws, 1, 1)).view(draws, 2, rank) @ up.T
    assert y.mean(0).abs().max() < 0.05
    for token in (0, 1):
        expected = scale**2 * up @ torch.diag((x[token] ** 2 * std**2).sum(-1)) @ up.T
        assert (torch.cov(y[:, token].T) - expected).norm() < 0.01 * expected.norm()
    across = y[:, 0].T @ y[:, 1] / draws
    assert across.norm() < 0.02 * expected.norm()
    without_signs = scale**2 * up @ torch.diag((x[0] * x[1] * std**2).sum(-1)) @ up.T
    assert without_signs.norm() > 0.2 * expected.norm()


def test_signs_arrive_and_leave() -> None:
    """Of a perturbation of ones: two inputs add up or cancel, two outputs agree or not, each every other time."""
    tokens = 20_000
    positions = torch.arange(1, tokens + 1)[None]
    for width, rank in ((2, 1), (1, 2)):
        linear = site(torch.zeros(rank, width))
        state = SiteState(
            keys=torch.tensor([5]), positions=positions, perturbations={"site.weight": torch.ones(1, rank, width)}
        )
        with linear.context.using(state):
            y = linear(torch.ones(1, tokens, width))[0]
        same = y.abs()[:, 0] == 2 if width == 2 else y[:, 0] == y[:, 1]
        assert abs(same.float().mean() - 0.5) < 4.5 * 0.5 / tokens**0.5


def test_bound_of_a_linear_regression_is_stationary_where_theory_says() -> None:
    """BLoB's draws, KL weight 1, noise tau: 1 / Omega_ij^2 = 1 / sigma_p^2 + s^2 (B^T B)_ii sum_n x_nj^2 / tau^2."""
    torch.manual_seed(0)
    draws, rank, width, out, questions, scale, tau, prior = 40_000, 2, 3, 4, 6, 2.0, 1.0, 0.2
    x, up, mean = torch.randn(questions, width), torch.randn(out, rank), 0.1 * torch.randn(rank, width)
    target = scale * x @ mean.T @ up.T + tau * torch.randn(questions, out)
    linear, ids = site(mean), torch.arange(draws)
    precision = 1 / prior**2 + scale**2 * (up.T @ up).diagonal()[:, None] * x.square().sum(0) / tau**2
    keys, positions = torch.arange(draws * questions) * 48271 + 11, torch.ones(draws * questions, 1, dtype=torch.long)

    def slopes(std: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Of the expected negative log-likelihood, and of the divergence."""
        std.requires_grad_()
        noise = draw_perturbations({"site.weight": std}, ids, seed=3).perturbations
        with linear.context.using(SiteState(groups=draws, keys=keys, positions=positions, perturbations=noise)):
            y = scale * linear(x.repeat(draws, 1)[:, None])[:, 0] @ up.T
        nll = (y.view(draws, questions, out) - target).square().sum() / (2 * tau**2 * draws)
        kl = normal_kl(mean, std, prior).sum()
        return torch.autograd.grad(nll, std)[0], torch.autograd.grad(kl, std)[0]

    nll, kl = slopes(precision.rsqrt())
    assert ((nll + kl).abs() < 0.05 * kl.abs()).all()
    nll, kl = slopes(1.1 * precision.rsqrt())
    assert (nll + kl > 0.1 * kl.abs()).all()


def test_rows_of_a_head_meet_the_same_signs() -> None:
    linear, rows = site(torch.randn(40, 6)), torch.tensor([3, 33, 7])
    state = SiteState(
        groups=2,
        keys=torch.tensor([5, 6]),
        positions=torch.ones(2, 9, dtype=torch.long),
        perturbations={"site.weight": torch.randn(2, 40, 6)},
    )
    with linear.context.using(state):
        x = torch.randn(2, 6)
        torch.testing.assert_close(linear(x, rows), linear(x)[:, rows])


def flipped(model: torch.nn.Module, count: int) -> Samples:
    generator = torch.Generator().manual_seed(1)
    parameters = {n: p for n, p in model.trainable().items() if ".lora_A." in n}
    values = {n: 0.3 * torch.randn(count, *p.shape, generator=generator) for n, p in parameters.items()}
    return Samples(draws=torch.arange(count), seed=4, perturbations=values)


def adapted(llama: str, **options: object) -> torch.nn.Module:
    model = load_answer_model(Backbone(llama, **options), LoRA(r=4, target_modules="all-linear"), seed=0)
    for name, parameter in model.trainable().items():
        if ".lora_B." in name:
            parameter.data.normal_(generator=torch.Generator().manual_seed(len(name)))
    return model


def test_a_question_meets_its_signs_in_any_batch_chunk_and_padding(llama: str) -> None:
    model = adapted(llama)
    batch, padded = (label_token_batch([9, 6, 7], [4, 3, 4], extra_padding=n) for n in (0, 5))
    samples = flipped(model, 3)
    with torch.no_grad():
        logits = model(batch, samples).logits
        torch.testing.assert_close(model(padded, samples).logits, logits, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(model(batch, samples, chunk=1).logits, logits, atol=1e-4, rtol=1e-4)
        plain = model(batch).logits
    assert ((logits - plain).abs() > 1e-3)[:, batch.answer_mask].all()
    assert torch.equal(plain, model(batch).logits)  # nothing stays behind


def test_gradients_reach_perturbations_also_when_layers_are_recomputed(llama: str) -> None:
    gradients = []
    for checkpointing in (False, True):
        model = adapted(llama, gradient_checkpointing=checkpointing).train()
        samples = flipped(model, 1)
        for value in samples.perturbations.values():
            value.requires_grad_()
        model(label_token_batch([9, 6], [4, 4]), samples).logits.logsumexp(-1).sum().backward()
        gradients.append([value.grad for value in samples.perturbations.values()])
    for plain, recomputed in zip(*gradients, strict=True):
        assert plain is not None
        assert plain.abs().sum() > 0
        torch.testing.assert_close(plain, recomputed, atol=1e-5, rtol=1e-4)


def test_perturbations_need_draws() -> None:
    with pytest.raises(ValueError, match="draws"):
        Samples(perturbations={"a": torch.zeros(1, 2, 2)})


def test_positions_count_from_the_end() -> None:
    assert positions_from_last(torch.tensor([[0, 1, 1]])).tolist() == [[2, 2, 1]]
