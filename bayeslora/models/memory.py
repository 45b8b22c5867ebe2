"""Memory of a GPU as torch sees it: what can still be had, and how what a failed attempt left is given back."""

from __future__ import annotations

import gc

import torch


def free_bytes(device: torch.device) -> int:
    """Bytes that torch can still allocate on a GPU: what the driver has free, and what torch's cache holds unused.

    The driver counts torch's cache as taken, which after training is most of the card.
    """
    cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + cached


def give_back() -> None:
    """Let go of what is no longer reachable, cycles included, and of torch's cache of GPU memory.

    To be called once the exception of an attempt that ran out of memory is gone: its traceback holds every local
    variable of the attempt.
    """
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
