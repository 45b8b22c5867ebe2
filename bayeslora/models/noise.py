"""Noise as a pure function of what it belongs to, so that it survives resuming, re-batching and recomputation.

No generator is advanced in a forward pass. A draw is a hash of (stream, draw id, the row's tokens, site, position
counted from the last token, channel): what is fed to the model alone decides, so that a question meets the same noise
alone, in any batch, from any file, with any padding, in any chunk of samples, after a resume, and when gradient
checkpointing computes a layer twice. Rows of the same tokens share their noise.
"""

import math
from collections.abc import Callable
from functools import cache
from itertools import takewhile
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import embedding

from bayeslora.streams import stream
from bayeslora.types import AnswerBatch, Samples

KEYED_BY = "tokens"  # as runs note it; those that note nothing were made when noise was keyed by dataset and row

# Multipliers and shifts of the splitmix64 finaliser (Steele, Lea & Flood, 2014), as signed 64-bit integers.
_GOLDEN = 0x9E3779B97F4A7C15 - (1 << 64)
_FIRST = 0xBF58476D1CE4E5B9 - (1 << 64)
_SECOND = 0x94D049BB133111EB - (1 << 64)
# How many numbers are drawn together, with and without a GPU. Operations on more take longer than their dispatch on the
# one and leave the cache of the other, so that there is nothing to gain, and memory to lose.
_TOGETHER = {True: 1 << 23, False: 1 << 17}


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
    rows = row_hash(batch.input_ids, batch.prompt_mask)
    return _mix(draws[:, None] ^ _mix(rows * _GOLDEN)[None, :]).flatten()


def _sent(draws: Tensor, device: torch.device) -> Tensor:
    """The ids of draws on a device; a GPU gets them from page-locked memory, for which the host need not wait."""
    return (
        draws.pin_memory().to(device, non_blocking=True) if device.type == "cuda" and draws.is_cpu else draws.to(device)
    )


def row_hash(input_ids: Tensor, attention_mask: Tensor) -> Tensor:
    """A hash of the real tokens of each row and of their order, int64 ``[R]``; the same under any padding.

    Args:
        input_ids: Token ids ``[R, T]``.
        attention_mask: One at real tokens, zero at padding ``[R, T]``.
    """
    places = _mix(positions_from_last(attention_mask) * _GOLDEN)
    return (_mix(places ^ _mix(input_ids * _SECOND)) * attention_mask).sum(-1)


def positions_from_last(attention_mask: Tensor) -> Tensor:
    """Position of every token counted back from its row's last real token ``[R, T]``; the same under any padding."""
    return attention_mask.flip(-1).cumsum(-1).flip(-1)


class Kind(NamedTuple):
    """All that the noise of a site depends on, but for its number: sites of one kind are drawn together.

    Attributes:
        law: Name of the law.
        stream: Of the sites' numbers.
        channels: Number of channels D.
        words: Number of random words a token.
        options: What else the law depends on.
    """

    law: str
    stream: int
    channels: int
    words: int
    options: tuple[Any, ...] = ()


def noise_positions(batch: AnswerBatch) -> Tensor:
    """Position of every token for its noise ``[R, T]``: 1 at a prompt's last token, -1, -2, .. at those of a label.

    All labels of a question meet the same function, which the prompt alone decides.
    """
    positions = positions_from_last(batch.prompt_mask)
    return positions if batch.whole_labels is None else positions - batch.whole_labels.offsets


class KnownSites:
    """Which sites draw noise of one kind in a pass, in their order: learnt in the first pass, drawn together later."""

    def __init__(self) -> None:
        self._blocks: dict[Kind, dict[int, str | None]] = {}  # of each site of a kind
        self._numbers: dict[tuple[Kind, torch.device], Tensor] = {}

    def of(self, kind: Kind) -> dict[int, str | None]:
        """The sites of a kind with the block of each, in the order in which they first asked."""
        return self._blocks.setdefault(kind, {})

    def numbers(self, kind: Kind, device: torch.device) -> Tensor:
        """Their numbers on the device ``[L]``.

        Args:
            kind: The kind of noise that the sites ask for.
            device: Where to put it.
        """
        sites, numbers = self.of(kind), self._numbers.get((kind, device))
        if numbers is None or len(numbers) != len(sites):
            numbers = self._numbers[kind, device] = torch.tensor(list(sites), device=device)
        return numbers


class Tokens:
    """The tokens of one pass, to draw noise for.

    Each token is hashed once for all sites that draw noise of one kind, in one chain of operations; and what becomes of
    the hashes is computed at once for the neighbours in a block (a layer) that ask next for the same, as long as they
    are small. What is kept for the pass is 8 bytes a token and site, some hundredths of its activations.

    Args:
        keys: Row keys ``[N]``.
        positions: Position of each token ``[N, T]``.
        known: Sites that are known to draw noise in a pass; without it each is hashed when it asks.
    """

    def __init__(self, keys: Tensor, positions: Tensor, known: KnownSites | None = None) -> None:
        self.keys, self.positions, self.known = keys, positions, known or KnownSites()
        self._hashes: dict[Kind, tuple[list[int], Tensor]] = {}
        self._lanes: dict[int, Tensor] = {}
        self._ready: dict[tuple[Kind, int], Tensor] = {}

    def drawn(self, kind: Kind, site: int, block: str | None, make: Callable[[Tensor], Tensor]) -> Tensor:
        """Noise of one site, and of its neighbours, which is kept until they ask for it.

        Args:
            kind: All that ``make`` depends on.
            site: Number of the site.
            block: Where its neighbours are; None for no neighbours.
            make: From the random bits ``[L, N, T, words]`` of L sites to their noise ``[L, N, T, D]``.
        """
        if (kind, site) not in self._ready:
            sites, hashes = self._neighbours(kind, site, block)
            made = make(_spread(hashes, self.lanes(kind.words)))
            self._ready.update(zip([(kind, one) for one in sites], made.unbind(), strict=True))
        return self._ready.pop((kind, site))

    def _neighbours(self, kind: Kind, site: int, block: str | None) -> tuple[list[int], Tensor]:
        """This site and those after it that are drawn with it, and the hashes of their tokens ``[L, N, T]``."""
        blocks = self.known.of(kind)
        if site not in blocks:
            blocks[site] = block
            return [site], self._hash(torch.full((1,), site, device=self.keys.device))
        if kind not in self._hashes or site not in self._hashes[kind][0]:
            self._hashes[kind] = list(blocks), self._hash(self.known.numbers(kind, self.keys.device))
        sites, every = self._hashes[kind]
        first = sites.index(site)
        most = _TOGETHER[self.keys.is_cuda] // max(1, self.positions.numel() * kind.channels)
        after = sites[first + 1 : first + max(1, most)] if block is not None else []
        beside = list(takewhile(lambda one: blocks[one] == block, after))
        return [site, *beside], every[first : first + 1 + len(beside)]

    def _hash(self, numbers: Tensor) -> Tensor:
        """A hash of key, position and site, int64 ``[L, N, T]``, for sites of these numbers ``[L]``."""
        places = self.positions + (numbers << 32)[:, None, None]
        return _mix(self.keys[:, None] ^ _mix(places * _GOLDEN))

    def lanes(self, channels: int) -> Tensor:
        """A hash of every channel, int64 ``[D]``."""
        if channels not in self._lanes:
            self._lanes[channels] = _mix(torch.arange(1, channels + 1, device=self.keys.device) * _SECOND)
        return self._lanes[channels]


def uniform(tokens: Tokens, site: int, channels: int) -> Tensor:
    """Uniform noise in [0, 1) for the activations at one site, float32 ``[N, T, D]``; see :func:`random_bits`.

    Args:
        tokens: The tokens that noise is drawn for ``[N, T]``.
        site: Number of the site; different sites have unrelated noise.
        channels: Number D of channels at the site.
    """
    return (random_bits(tokens, site, channels) >> 40).to(torch.float32).mul_(2.0**-24).add_(0.5)


def normal(tokens: Tokens, site: int, channels: int, block: str | None = None) -> Tensor:
    """Standard normal noise for the activations at one site, float32 ``[N, T, D]``; see :func:`random_bits`.

    The inverse distribution function at 2^24 equally spaced points: no draw is beyond 5.4.

    Args:
        tokens: The tokens that noise is drawn for ``[N, T]``.
        site: Number of the site; different sites have unrelated noise.
        channels: Number D of channels at the site.
        block: Names a further independent draw at the same site; None for the first.
    """

    def made(bits: Tensor) -> Tensor:
        """Standard normal numbers of random bits."""
        odds = (bits >> 40).to(torch.float32).add_(0.5).mul_(2.0**-23)
        return odds.erfinv_().mul_(math.sqrt(2))

    return tokens.drawn(Kind("normal", site >> 20, channels, channels), site, block, made)


def dropout_factors(
    tokens: Tokens, site: int, channels: int, rate: float, dtype: torch.dtype, block: str | None = None
) -> Tensor:
    """What dropout multiplies by, ``[N, T, D]``: 1 / (1 - rate) where :func:`uniform` is ``rate`` or more, else 0.

    Args:
        tokens: The tokens that noise is drawn for ``[N, T]``.
        site: Number of the site; different sites have unrelated noise.
        channels: Number D of channels at the site.
        rate: Probability of a zero.
        dtype: The dtype of the result.
        block: Names a further independent draw at the same site; None for the first.
    """

    def made(bits: Tensor) -> Tensor:
        """Dropout's factors of random bits."""
        return (bits >= math.floor((rate - 0.5) * 2**24) << 40).to(dtype).div_(1 - rate)

    return tokens.drawn(Kind("dropout", site >> 20, channels, channels, (rate, dtype)), site, block, made)


def signs(tokens: Tokens, site: int, channels: int, dtype: torch.dtype, block: str | None = None) -> Tensor:
    """Fair signs -1 and 1 for the activations at one site, ``[N, T, D]``; 32 channels share a :func:`random_bits`.

    Args:
        tokens: The tokens that noise is drawn for ``[N, T]``.
        site: Number of the site; different sites have unrelated noise.
        channels: Number D of channels at the site.
        dtype: The dtype of the result.
        block: Names a further independent draw at the same site; None for the first.
    """
    words = -(-channels // 32)

    def made(bits: Tensor) -> Tensor:
        """32 signs of every word of random bits."""
        octets = bits.view(torch.uint8).unflatten(-1, (words, 8))[..., 4:]  # the better half of every word
        return embedding(octets.to(torch.int32), _signs_of_octets(dtype, bits.device)).flatten(-3)[..., :channels]

    return tokens.drawn(Kind("signs", site >> 20, channels, words, (dtype,)), site, block, made)


@cache
def _signs_of_octets(dtype: torch.dtype, device: torch.device) -> Tensor:
    """The eight signs of every octet, lowest bit first, ``[256, 8]``."""
    with torch.inference_mode(False):
        bits = torch.arange(256, device="cpu")[:, None] >> torch.arange(8, device="cpu") & 1
        return (2 * bits - 1).to(dtype).to(device)


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
    return tokens.drawn(Kind("bits", site >> 20, channels, channels), site, None, lambda bits: bits)


def _spread(hashes: Tensor, lanes: Tensor) -> Tensor:
    """Random words ``[..., D]`` of the hashes ``[...]`` of tokens and those of channels ``[D]``."""
    bits = hashes[..., None] ^ lanes
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
