"""Named streams of randomness: every draw in the package says which stream it belongs to, never ``seed + k``."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def stream(*parts: int | str) -> int:
    """A 63-bit seed for the stream that ``parts`` name; different names give unrelated streams.

    Args:
        parts: What identifies the stream, for example ``(seed, "dropout")`` or ``(seed, member, "init")``.
    """
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def generator(*parts: int | str, device: torch.device | str = "cpu") -> torch.Generator:
    """A fresh torch generator on the stream that ``parts`` name.

    Args:
        *parts: Numbers and names that say what the draw belongs to.
        device: Of the generator.
    """
    return torch.Generator(device).manual_seed(stream(*parts))


@contextmanager
def global_draws(seed: int, device: torch.device | str = "cpu") -> Iterator[None]:
    """Within the block, what a library draws from the global generators starts from ``seed``; then they are as before.

    Args:
        seed: Of a stream, see :func:`stream`.
        device: Whose generator is meant beside the CPU's.
    """
    devices = [torch.device(device)] if torch.device(device).type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.random.default_generator.manual_seed(seed)  # torch.manual_seed would seed, or later seed, every GPU too
        for one in devices:
            with torch.cuda.device(one):
                torch.cuda.manual_seed(seed)
        yield
