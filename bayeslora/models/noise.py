"""Noise as a pure function of what it belongs to, so that it survives resuming, re-batching and recomputation.

No generator is advanced in a forward pass. A draw is a hash of (stream, draw id, the row's tokens, site, position
counted from the last token, channel): what is fed to the model alone decides, so that a question meets the same noise
alone, in any batch, from any file, with any padding, in any chunk of samples, after a resume, and when gradient
checkpointing computes a layer twice. Rows of the same tokens share their noise.
"""

import math

import torch
from torch import Tensor

from bayeslora.streams import stream
from bayeslora.types import AnswerBatch, Samples

KEYED_BY = "tokens"  # as runs note it; those that note nothing were made when noise was keyed by dataset and row

# Multipliers and shifts of the splitmix64 finaliser (Steele, Lea & Flood, 2014), as signed 64-bit integers.
_GOLDEN = 0x9E3779B97F4A7C15 - (1 << 64)
_FIRST = 0xBF58476D1CE4E5B9 - (1 << 64)
_SECOND = 0x94D049BB133111EB - (1 << 64)


def row_keys(batch: AnswerBatch, samples: Samples) -> Tensor:
    """One noise key for every row of every sample.

    Args:
        batch: The questions, as R rows.
        samples: Their ``draws`` are the ids of the S draws, their ``seed`` names the stream; where they are
            ``coherent`` the rows of a draw share one key, in every batch of every dataset.

    Returns:
        int64 ``[S * R]``, sample-major, on the batch's device.
    """
    if samples.draws is None:
        raise ValueError("samples without draws have no noise")
    device = batch.input_ids.device
    if samples.coherent:
        keys = _mix(_sent(samples.draws, device) * _GOLDEN + stream(samples.seed, "coherent"))
        return keys.repeat_interleave(len(batch.input_ids))
    draws = _mix(_sent(samples.draws, device) * _GOLDEN + stream(samples.seed, "rows"))
    rows = row_hash(batch.input_ids, batch.attention_mask)
    return _mix(draws[:, None] ^ _mix(rows * _GOLDEN)[None, :]).flatten()


def _sent(draws: Tensor, device: torch.device) -> Tensor:
    """The ids of draws on a device; a GPU gets them from page-locked memory, for which the host need not wait."""
    return (
        draws.pin_memory().to(device, non_blocking=True) if device.type == "cuda" and draws.is_cpu else draws.to(device)
    )


def row_hash(input_ids: Tensor, attention_mask: Tensor) -> Tensor:
    """A hash of the real tokens of each row and of their order, int64 ``[R]``; the same under any padding."""
    places = _mix(positions_from_last(attention_mask) * _GOLDEN)
    return (_mix(places ^ _mix(input_ids * _SECOND)) * attention_mask).sum(-1)


def positions_from_last(attention_mask: Tensor) -> Tensor:
    """Position of every token counted back from its row's last real token ``[R, T]``; the same under any padding."""
    return attention_mask.flip(-1).cumsum(-1).flip(-1)


class KnownSites:
    """Which sites draw noise in a pass, by kind: learnt in the first pass, hashed together from then on."""

    def __init__(self) -> None:
        self._sites: dict[int, list[int]] = {}
        self._numbers: dict[tuple[int, torch.device], Tensor] = {}

    def beside(self, site: int, device: torch.device) -> tuple[list[int], Tensor]:
        """The sites to hash together with this one, itself among them, and their numbers on the device ``[L]``."""
        kind = site >> 20
        sites = self._sites.setdefault(kind, [])
        if site not in sites:
            sites.append(site)
            return [site], torch.full((1,), site, device=device)
        numbers = self._numbers.get((kind, device))
        if numbers is None or len(numbers) != len(sites):
            numbers = self._numbers[kind, device] = torch.tensor(sites, device=device)
        return sites, numbers


class Tokens:
    """The tokens of one pass, to draw noise for: each is hashed once for all sites, in one chain of operations.

    What is kept for the pass is 8 bytes a token and site, some hundredths of the activations that the pass keeps.

    Args:
        keys: Row keys ``[N]``.
        positions: Position of each token ``[N, T]``.
        known: Sites that are known to draw noise in a pass; without it each is hashed when it asks.
    """

    def __init__(self, keys: Tensor, positions: Tensor, known: KnownSites | None = None) -> None:
        self.keys, self.positions, self.known = keys, positions, known or KnownSites()
        self._hashes: dict[int, Tensor] = {}
        self._lanes: dict[int, Tensor] = {}

    def hashes(self, site: int) -> Tensor:
        """A hash of key, position and site, int64 ``[N, T]``."""
        if site not in self._hashes:
            sites, numbers = self.known.beside(site, self.keys.device)
            places = self.positions + (numbers << 32)[:, None, None]
            every = _mix(self.keys[:, None] ^ _mix(places * _GOLDEN))
            self._hashes.update(zip(sites, every.unbind(), strict=True))
        return self._hashes[site]

    def lanes(self, channels: int) -> Tensor:
        """A hash of every channel, int64 ``[D]``."""
        if channels not in self._lanes:
            self._lanes[channels] = _mix(torch.arange(1, channels + 1, device=self.keys.device) * _SECOND)
        return self._lanes[channels]


def uniform(tokens: Tokens, site: int, channels: int) -> Tensor:
    """Uniform noise in [0, 1) for the activations at one site, float32 ``[N, T, D]``; see :func:`random_bits`."""
    return (random_bits(tokens, site, channels) >> 40).to(torch.float32).mul_(2.0**-24).add_(0.5)


def normal(tokens: Tokens, site: int, channels: int) -> Tensor:
    """Standard normal noise for the activations at one site, float32 ``[N, T, D]``; see :func:`random_bits`.

    The inverse distribution function at 2^24 equally spaced points: no draw is beyond 5.4.
    """
    odds = (random_bits(tokens, site, channels) >> 40).to(torch.float32).add_(0.5).mul_(2.0**-23)
    return odds.erfinv_().mul_(math.sqrt(2))


def keep_mask(tokens: Tokens, site: int, channels: int, rate: float) -> Tensor:
    """Which activations dropout at ``rate`` keeps, bool ``[N, T, D]``: where :func:`uniform` is ``rate`` or more."""
    return random_bits(tokens, site, channels) >= math.floor((rate - 0.5) * 2**24) << 40


def signs(tokens: Tokens, site: int, channels: int) -> Tensor:
    """Fair coin flips for the activations at one site, bool ``[N, T, D]``; 32 channels share a :func:`random_bits`."""
    words = random_bits(tokens, site, -(-channels // 32))
    octets = words.view(torch.uint8).unflatten(-1, (-1, 8))[..., 4:].flatten(-2)  # the better half of every word
    bits = octets[..., None] & (1 << torch.arange(8, dtype=torch.uint8, device=words.device))
    return (bits != 0).flatten(-2)[..., :channels]


def random_bits(tokens: Tokens, site: int, channels: int) -> Tensor:
    """Uniformly distributed int64 for the activations at one site.

    Args:
        tokens: The tokens, by key and position.
        site: Number of the site.
        channels: Number of channels D.

    Returns:
        ``[N, T, D]``; entry (n, t, d) depends on the key of row n, the position of token t, ``site`` and d alone. The
        high bits are the better ones.
    """
    bits = tokens.hashes(site)[:, :, None] ^ tokens.lanes(channels)
    bits *= _FIRST  # both sides are mixed already: two products and a fold between them are enough
    bits ^= bits >> 32
    bits *= _SECOND
    return bits


def _mix(x: Tensor) -> Tensor:
    """The splitmix64 finaliser: a bijection of int64 in which every input bit flips every output bit half the time."""
    x = x ^ ((x >> 30) & 0x3FFFFFFFF)
    x = x.mul_(_FIRST)
    x ^= (x >> 27) & 0x1FFFFFFFFF
    x *= _SECOND
    x ^= (x >> 31) & 0x1FFFFFFFF
    return x
