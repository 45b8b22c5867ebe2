"""Named streams of randomness: every draw in the package says which stream it belongs to, never ``seed + k``."""

import hashlib

import torch


def stream(*parts: int | str) -> int:
    """A 63-bit seed for the stream that ``parts`` name; different names give unrelated streams.

    Args:
        parts: What identifies the stream, for example ``(seed, "dropout")`` or ``(seed, member, "init")``.
    """
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def generator(*parts: int | str, device: torch.device | str = "cpu") -> torch.Generator:
    """A fresh torch generator on the stream that ``parts`` name."""
    return torch.Generator(device).manual_seed(stream(*parts))
