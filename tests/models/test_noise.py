"""Keyed noise: uniform, independent, and the same whatever batch or padding it meets."""

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from bayeslora.models import noise as noise_of
from bayeslora.models.fan_out import site_state
from bayeslora.models.noise import (
    KnownSites,
    Tokens,
    dropout_factors,
    normal,
    positions_from_last,
    random_bits,
    row_hash,
    row_keys,
    signs,
    uniform,
)
from bayeslora.streams import generator, stream
from bayeslora.types import Samples
from tests.helpers.batches import label_token_batch


def _noise(lengths, draws=(0,), seed=1, extra_padding=0, site=3, channels=32):
    batch = label_token_batch(lengths, [4] * len(lengths), extra_padding=extra_padding)
    samples = Samples(draws=torch.tensor(draws), seed=seed)
    positions = positions_from_last(batch.attention_mask).repeat(len(draws), 1)
    return uniform(Tokens(row_keys(batch, samples), positions), site, channels)


def test_noise_is_uniform_and_uncorrelated() -> None:
    noise = _noise([40] * 50, draws=range(4), channels=64)
    n = noise.numel()
    assert abs(noise.mean() - 0.5) < 5 / (12 * n) ** 0.5
    assert abs(noise.var() - 1 / 12) < 5 * (1 / 180 / n) ** 0.5
    counts = torch.histc(noise, 64, 0, 1)
    chi2 = ((counts - n / 64) ** 2 / (n / 64)).sum()
    assert chi2 < 63 + 5 * (2 * 63) ** 0.5
    for axis in range(3):  # neighbours along rows, positions and channels
        a, b = noise.narrow(axis, 0, noise.shape[axis] - 1), noise.narrow(axis, 1, noise.shape[axis] - 1)
        assert abs(torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1]) < 5 / n**0.5


def test_noise_differs_between_sites_draws_seeds_and_examples() -> None:
    base = _noise([10, 10])
    others = [_noise([10, 10], draws=(1,)), _noise([10, 10], seed=2), _noise([10, 10], site=4), base.flip(0)]
    for other in others:
        assert (base == other).float().mean() < 0.01


def test_padding_and_batch_do_not_change_a_rows_noise() -> None:
    alone, padded, together = _noise([9]), _noise([9], extra_padding=5), _noise([9, 20])
    assert torch.equal(alone[0], padded[0, 5:])
    assert torch.equal(alone[0], together[0, 11:])


def test_a_sample_keeps_its_noise_in_any_chunk() -> None:
    assert torch.equal(_noise([7, 5], draws=(0, 1, 2))[2:4], _noise([7, 5], draws=(1,)))


def test_positions_count_back_from_the_last_real_token() -> None:
    mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 0, 0]])
    assert positions_from_last(mask)[0, 2:].tolist() == [3, 2, 1]
    assert positions_from_last(mask)[1, :3].tolist() == [3, 2, 1]


def test_streams_have_no_arithmetic_collisions() -> None:
    seeds = {stream(run, member, kind) for run in range(20) for member in range(20) for kind in ("init", "data")}
    assert len(seeds) == 800
    assert torch.equal(torch.rand(3, generator=generator(1, "x")), torch.rand(3, generator=generator(1, "x")))


def test_global_random_state_is_left_alone() -> None:
    before = torch.random.get_rng_state()
    _noise([9, 20], draws=(0, 1))
    assert torch.equal(before, torch.random.get_rng_state())


def test_dropout_keeps_what_is_above_its_rate() -> None:
    keys, positions = torch.arange(40) * 7919, torch.arange(30).expand(40, -1)
    noise = uniform(Tokens(keys, positions), 2, 64)
    for rate in (0.05, 0.3, 0.9):
        factors = dropout_factors(Tokens(keys, positions), 2, 64, rate, torch.float32)
        keep = factors > 0
        assert torch.equal(keep, noise >= math.floor(rate * 2**24) / 2**24)
        assert torch.equal(factors, keep.float() / (1 - rate))
        assert abs(keep.float().mean() - (1 - rate)) < 5 * (rate * (1 - rate) / keep.numel()) ** 0.5


def test_normal_noise_is_normal() -> None:
    keys, positions = torch.arange(200) * 7919, torch.arange(40).expand(200, -1)
    noise = normal(Tokens(keys, positions), 3, 32).flatten().double().sort().values
    n = len(noise)
    reference = torch.distributions.Normal(0.0, 1.0).cdf(noise)
    distance = (reference - torch.arange(1, n + 1) / n).abs().max()  # Kolmogorov and Smirnov's
    assert distance < 1.95 / n**0.5  # 0.1 %
    assert noise.abs().max() < 5.5
    tokens = normal(Tokens(keys, positions), 3, 32).flatten(0, 1)
    assert (torch.corrcoef(tokens.T) - torch.eye(32)).abs().max() < 5 / len(tokens) ** 0.5


def test_coherent_draws_are_the_same_for_all_rows_and_positions() -> None:
    first, second = (label_token_batch(lengths, [4] * len(lengths), seed=len(lengths)) for lengths in ([5, 9], [7] * 3))
    samples = Samples(draws=torch.arange(4), seed=1, coherent=True)
    states = [site_state(batch, samples) for batch in (first, second)]
    noise = [normal(Tokens(state.keys, state.positions), 3, 8).unflatten(0, (4, -1)) for state in states]
    for values in noise:
        assert torch.equal(values, values[:, :1, :1].expand_as(values))
    assert torch.equal(noise[0][:, 0, 0], noise[1][:, 0, 0])
    assert len(noise[0][:, 0, 0].unique()) == 32
    part = site_state(first, samples[2:3])
    assert torch.equal(normal(Tokens(part.keys, part.positions), 3, 8)[0, 0], noise[0][2, 0, 0])


def test_a_question_meets_the_same_noise_from_any_file_and_row() -> None:
    samples = Samples(draws=torch.tensor([0, 1]), seed=3)
    batch = label_token_batch([9, 20, 14], [4, 4, 4])
    rows = torch.tensor([2, 0])
    other = replace(batch, dataset="another", example_id=batch.example_id + 100)
    kept = replace(other, input_ids=batch.input_ids[rows], attention_mask=batch.attention_mask[rows])
    assert torch.equal(row_keys(kept, samples).view(2, 2), row_keys(batch, samples).view(2, 3)[:, rows])


def test_rows_of_other_tokens_or_another_order_have_other_keys() -> None:
    ids = torch.randint(0, 32000, (20000, 6), generator=torch.Generator().manual_seed(0))
    ids = torch.cat([ids, ids.flip(-1)]).unique(dim=0)
    mask = torch.ones_like(ids)
    assert len(row_hash(ids, mask).unique()) == len(ids)
    mask[:, 0] = 0  # what is padding does not count
    same = ids.clone()
    same[:, 0] = 7
    assert torch.equal(row_hash(ids, mask), row_hash(same, mask))


def test_sites_that_are_hashed_together_draw_what_each_draws_alone() -> None:
    """The formula that runs of before were drawn with, site by site."""
    source = torch.Generator().manual_seed(0)
    keys = torch.randint(-(2**63), 2**63 - 1, (5,), generator=source)
    positions = torch.arange(7).repeat(5, 1)
    golden, first, second = (n - (1 << 64) for n in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))

    def mix(x: torch.Tensor) -> torch.Tensor:
        x = (x ^ ((x >> 30) & 0x3FFFFFFFF)) * first
        x = (x ^ ((x >> 27) & 0x1FFFFFFFFF)) * second
        return x ^ ((x >> 31) & 0x1FFFFFFFF)

    known = KnownSites()
    for turn in range(3):  # the first learns the sites, the others hash all of a kind at once
        tokens = Tokens(keys, positions, known)
        for site in (3, 5, (1 << 20) + 3, 8, (1 << 24) + 5)[: 3 + turn]:
            hashes = mix(keys[:, None] ^ mix((positions + (site << 32)) * golden))
            bits = hashes[:, :, None] ^ mix(torch.arange(1, 12) * second)
            bits = bits * first
            bits = (bits ^ (bits >> 32)) * second
            assert torch.equal(random_bits(tokens, site, 11), bits), (turn, site)


Draw = Callable[[Tokens, int, str | None], torch.Tensor]
KINDS: dict[str, Draw] = {
    "dropout": lambda tokens, site, block: dropout_factors(tokens, site, 40, 0.3, torch.float32, block),
    "normal": lambda tokens, site, block: normal(tokens, site, 40, block),
    "signs": lambda tokens, site, block: signs(tokens, site, 40, torch.bfloat16, block),
}


@pytest.mark.parametrize("kind", KINDS)
def test_neighbours_that_are_drawn_together_draw_what_each_draws_alone(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys, positions = torch.arange(3) * 7919, torch.arange(5).repeat(3, 1)
    draw, known, spread, chains = KINDS[kind], KnownSites(), noise_of._spread, []
    monkeypatch.setattr(noise_of, "_spread", lambda hashes, lanes: chains.append(len(hashes)) or spread(hashes, lanes))
    sites = {1: "layers.0", 4: "layers.0", 2: "layers.0", 9: "layers.1", 7: "layers.1", 8: "head"}
    alone = {site: draw(Tokens(keys, positions), site, None) for site in sites}
    for _ in range(2):  # the first pass learns the sites
        chains.clear()
        tokens = Tokens(keys, positions, known)
        assert all(torch.equal(draw(tokens, site, block), alone[site]) for site, block in sites.items())
    assert chains == [3, 2, 1]
    assert not tokens._ready  # nothing is kept that has been asked for
    again = {site: draw(tokens, site, sites[site]) for site in (9, 7)}  # as when a layer is computed a second time
    assert all(torch.equal(values, alone[site]) for site, values in again.items())
    monkeypatch.setitem(noise_of._TOGETHER, False, 2 * 3 * 5 * 40)
    chains.clear()
    tokens = Tokens(keys, positions, known)
    assert all(torch.equal(draw(tokens, site, block), alone[site]) for site, block in sites.items())
    assert chains == [2, 1, 2, 1]  # no more at once than is of use


def test_signs_are_the_bits_of_the_better_half_of_every_word() -> None:
    """The formula that runs of before were drawn with."""
    tokens = Tokens(torch.arange(4) * 7919, torch.arange(6).repeat(4, 1))
    octets = random_bits(tokens, 5, 3).view(torch.uint8).unflatten(-1, (-1, 8))[..., 4:].flatten(-2)
    bits = (octets[..., None] & (1 << torch.arange(8, dtype=torch.uint8))).flatten(-2)[..., :70]
    assert torch.equal(signs(tokens, 5, 70, torch.float64), torch.where(bits != 0, 1.0, -1.0).double())


def test_a_pass_hashes_its_tokens_once(monkeypatch: pytest.MonkeyPatch) -> None:
    chains, mix = [], noise_of._mix
    monkeypatch.setattr(noise_of, "_mix", lambda x: chains.append(x.shape) or mix(x))
    known, sites = KnownSites(), range(20)
    for turn in range(2):
        tokens = Tokens(torch.tensor([1, 2]), torch.ones(2, 3, dtype=torch.long), known)
        for site in sites:
            random_bits(tokens, site, 4)
        assert len(chains) == (2 * len(sites) + 1 if turn == 0 else 3)
        chains.clear()
