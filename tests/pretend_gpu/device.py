"""A pretend CUDA device on a machine without one: what CUDA refuses is refused, what makes the host wait is noted.

    from tests.pretend_gpu import device   # before anything imports torch, so in a process of its own

    device.activate()
    import torch                            # torch.cuda.is_available() is true from here on

    with device.recording() as record:      # recordings may be nested
        y = torch.ones(3, device="cuda") * 2
        y.sum().item()
    record.operations                       # Counter(ones=1, mul=1, sum=1, _local_scalar_dense=1); views left out
    record.waits                            # Counter({("value", "_local_scalar_dense.default", "file.py:7"): 1})
    print("\\n".join(record.lines()))

:func:`missing` says why it cannot be had (no compiler). Numbers are right, since the CPU computes them; two devices in
one operation, a generator of another device, and ``numpy()`` raise CUDA's own errors. It cannot show asynchrony,
memory, speed, kernels, fused and foreach paths, or anything of bitsandbytes, whose kernels take raw pointers: modules
on it have bases that are not quantised. Inference mode is not supported.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from tests.pretend_gpu import library
from tests.pretend_gpu.library import missing
from tests.pretend_gpu.record import Record

__all__ = ["activate", "missing", "recording"]


def activate() -> None:
    """Turn the pretence on for the rest of the process.

    Raises:
        RuntimeError: torch has been imported before.
    """
    os.environ["HF_DEACTIVATE_ASYNC_LOAD"] = "1"  # dispatch modes do not reach Hugging Face's loading threads
    library.load()
    from tests.pretend_gpu.patches import install

    install()


@contextmanager
def recording() -> Iterator[Record]:
    """Within the block, operations of the device and waits for it are noted in the record."""
    from tests.pretend_gpu.tensors import records

    record = Record()
    records.append(record)
    try:
        yield record
    finally:
        records.remove(record)
