"""What a run on a GPU is given that nobody asked for: its precision, and workspaces that repeat their bits."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from bayeslora.models.loading import half_precision

_WORKSPACES = "CUBLAS_WORKSPACE_CONFIG"


def gpu_precision(accelerator: Any) -> str | None:
    """Mixed precision in the half precision of the GPU; None where there is none, or it is not wanted."""
    if not torch.cuda.is_available() or accelerator not in ("auto", "gpu", "cuda"):
        return None
    return "bf16-mixed" if half_precision() is torch.bfloat16 else "16-mixed"


@contextmanager
def workspaces_as_chosen() -> Iterator[None]:
    """Within the block, keep the size of cuBLAS's workspaces that the user has chosen.

    A trainer that is ``deterministic`` sets one, without which matrix products do not repeat their bits on a GPU, and
    overwrites the user's. cuBLAS reads it when it is first used, which is after trainers are made.
    """
    own = os.environ.get(_WORKSPACES)
    yield
    if own is not None:
        os.environ[_WORKSPACES] = own
