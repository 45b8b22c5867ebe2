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
        keys = _mix(samples.draws.to(device) * _GOLDEN + stream(samples.seed, "coherent"))
        return keys.repeat_interleave(len(batch.input_ids))
    draws = _mix(samples.draws.to(device) * _GOLDEN + stream(samples.seed, "rows"))
    rows = row_hash(batch.input_ids, batch.attention_mask)
    return _mix(draws[:, None] ^ _mix(rows * _GOLDEN)[None, :]).flatten()


def row_hash(input_ids: Tensor, attention_mask: Tensor) -> Tensor:
    """A hash of the real tokens of each row and of their order, int64 ``[R]``; the same under any padding."""
    places = _mix(positions_from_last(attention_mask) * _GOLDEN)
    return (_mix(places ^ _mix(input_ids * _SECOND)) * attention_mask).sum(-1)


def positions_from_last(attention_mask: Tensor) -> Tensor:
    """Position of every token counted back from its row's last real token ``[R, T]``; the same under any padding."""
    return attention_mask.flip(-1).cumsum(-1).flip(-1)


def uniform(keys: Tensor, positions: Tensor, site: int, channels: int) -> Tensor:
    """Uniform noise in [0, 1) for the activations at one site, float32 ``[N, T, D]``; see :func:`random_bits`."""
    return (random_bits(keys, positions, site, channels) >> 40).to(torch.float32).mul_(2.0**-24).add_(0.5)


def normal(keys: Tensor, positions: Tensor, site: int, channels: int) -> Tensor:
    """Standard normal noise for the activations at one site, float32 ``[N, T, D]``; see :func:`random_bits`.

    The inverse distribution function at 2^24 equally spaced points: no draw is beyond 5.4.
    """
    odds = (random_bits(keys, positions, site, channels) >> 40).to(torch.float32).add_(0.5).mul_(2.0**-23)
    return odds.erfinv_().mul_(math.sqrt(2))


def keep_mask(keys: Tensor, positions: Tensor, site: int, channels: int, rate: float) -> Tensor:
    """Which activations dropout at ``rate`` keeps, bool ``[N, T, D]``: where :func:`uniform` is ``rate`` or more."""
    return random_bits(keys, positions, site, channels) >= math.floor((rate - 0.5) * 2**24) << 40


def signs(keys: Tensor, positions: Tensor, site: int, channels: int) -> Tensor:
    """Fair coin flips for the activations at one site, bool ``[N, T, D]``; 32 channels share a :func:`random_bits`."""
    words = random_bits(keys, positions, site, -(-channels // 32))
    octets = words.view(torch.uint8).unflatten(-1, (-1, 8))[..., 4:].flatten(-2)  # the better half of every word
    bits = octets[..., None] & (1 << torch.arange(8, dtype=torch.uint8, device=keys.device))
    return (bits != 0).flatten(-2)[..., :channels]


def random_bits(keys: Tensor, positions: Tensor, site: int, channels: int) -> Tensor:
    """Uniformly distributed int64 for the activations at one site.

    Args:
        keys: Row keys ``[N]``.
        positions: Position of each token ``[N, T]``.
        site: Number of the site.
        channels: Number of channels D.

    Returns:
        ``[N, T, D]``; entry (n, t, d) depends on ``keys[n]``, ``positions[n, t]``, ``site`` and d alone. The high
        bits are the better ones.
    """
    tokens = _mix(keys[:, None] ^ _mix((positions + (site << 32)) * _GOLDEN))
    lanes = _mix(torch.arange(1, channels + 1, device=keys.device) * _SECOND)
    bits = tokens[:, :, None] ^ lanes
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
