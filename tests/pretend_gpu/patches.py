"""What torch is told so that the libraries above it believe in the pretend device."""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from tests.pretend_gpu import tensors

GB = 10**9
TOTAL = 80 * GB


def install() -> None:
    """Replace the parts of torch that ask for a real device, and enter the dispatch mode for good."""
    # These look for CUDA when they are imported, and would find too much of it later.
    import lightning.pytorch.callbacks  # noqa: F401
    import peft.tuners.lora  # noqa: F401
    import torch._dynamo
    import torch._inductor
    import torchmetrics  # noqa: F401
    import transformers.modeling_utils  # noqa: F401

    for name, value in _answers().items():
        setattr(torch.cuda, name, value)
    torch.cuda.amp.common.amp_definitely_not_available = lambda: False
    torch.Tensor.pin_memory = tensors.pin  # type: ignore[method-assign, assignment]
    torch.Tensor.is_pinned = tensors.is_pinned  # type: ignore[method-assign, assignment]
    torch.Generator = tensors.Generator  # type: ignore[misc, assignment]
    for name in ("tensor", "as_tensor", "asarray"):
        setattr(torch, name, tensors.through_the_cpu(getattr(torch, name)))
    torch.autograd.set_multithreading_enabled(False)  # type: ignore[attr-defined]  # modes are of one thread
    torch.__future__.set_swap_module_params_on_conversion(True)  # `.data =` cannot change a tensor's class
    nn.Module._apply = _apply  # type: ignore[method-assign, assignment]
    tensors.DispatchMode().__enter__()


def _answers() -> dict[str, Any]:
    """Functions of ``torch.cuda`` by name. Of its random state there is one number, so that tests can see it kept."""
    state = {"rng": torch.zeros(8, dtype=torch.uint8)}

    def seed(value: int) -> None:
        state["rng"] = torch.frombuffer(bytearray((value % 2**63).to_bytes(8, "little")), dtype=torch.uint8)

    def set_rng_state(value: Any, *_: Any) -> None:
        state["rng"] = value.clone()

    properties = SimpleNamespace(
        name="pretend", major=9, minor=0, multi_processor_count=132, total_memory=TOTAL, gcnArchName=""
    )
    nothing, one = (lambda *_, **__: None), (lambda *_, **__: 1)
    return {
        **dict.fromkeys(("_lazy_init", "set_device", "reset_peak_memory_stats", "empty_cache", "synchronize"), nothing),
        **dict.fromkeys(("device_count", "_device_count_nvml"), one),
        **dict.fromkeys(("memory_reserved", "memory_allocated", "max_memory_allocated", "max_memory_reserved"), one),
        **dict.fromkeys(("is_available", "is_initialized", "is_bf16_supported"), lambda *_, **__: True),
        **dict.fromkeys(("manual_seed", "manual_seed_all"), seed),
        "_is_in_bad_fork": lambda: False,
        "current_device": lambda: 0,
        "device": lambda *_: nullcontext(),
        "get_device_name": lambda *_: properties.name,
        "get_device_capability": lambda *_: (properties.major, properties.minor),
        "get_device_properties": lambda *_: properties,
        "get_rng_state": lambda *_: state["rng"].clone(),
        "get_rng_state_all": lambda: [state["rng"].clone()],
        "mem_get_info": lambda *_: (TOTAL - 10 * GB, TOTAL),
        "memory_stats": lambda *_: {},
        "set_rng_state": set_rng_state,
        "set_rng_state_all": lambda states: set_rng_state(states[0]) if states else None,
    }


_module_apply = nn.Module._apply


def _apply(module: nn.Module, fn: Any, recurse: bool = True) -> nn.Module:
    """Move a module. A parameter whose graph is still alive cannot be swapped, and is replaced by a new one."""
    try:
        return _module_apply(module, fn, recurse)
    except RuntimeError as error:
        if "swap" not in str(error):
            raise
        torch.__future__.set_swap_module_params_on_conversion(False)
        torch.__future__.set_overwrite_module_params_on_conversion(True)
        try:
            return _module_apply(module, fn, recurse)
        finally:
            torch.__future__.set_overwrite_module_params_on_conversion(False)
            torch.__future__.set_swap_module_params_on_conversion(True)
