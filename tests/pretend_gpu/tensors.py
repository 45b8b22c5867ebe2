"""Tensors that say they are on cuda:0, hold CPU data, and refuse what CUDA refuses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_flatten, tree_map_only, tree_unflatten

from tests.pretend_gpu.record import Record, line_of_the_project

CUDA, CPU = torch.device("cuda:0"), torch.device("cpu")
records: list[Record] = []  # the recordings that are open

VIEWS = {
    *("view", "_unsafe_view", "transpose", "t", "select", "slice", "expand", "unsqueeze", "squeeze", "detach", "alias"),
    *("permute", "as_strided", "split", "unbind", "split_with_sizes", "lift_fresh", "unfold", "diagonal", "chunk"),
    *("view_as_real", "view_as_complex", "_reshape_alias"),
}
TWO_DEVICES = {"_to_copy", "copy_", "copy", "set_", "lift_fresh", "_has_compatible_shallow_copy_type"}
POINTWISE = {"where", "masked_fill", "masked_fill_", "fill_", "fill"}  # without torch's tag for it
INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index"}
READS = {"_local_scalar_dense", "equal", "is_nonzero"}
NOT_DETERMINISTIC = {"put_", "put", "histc", "kthvalue", "median", "scatter_reduce", "scatter_reduce_"}
SIZED_BY_VALUES = {"nonzero", "_unique2", "unique_dim", "unique_consecutive", "masked_select", "bincount"}


class CudaTensor(Tensor):
    """A tensor of the pretend device around a CPU tensor."""

    data_on_cpu: Tensor

    @staticmethod
    def __new__(cls: type[CudaTensor], data: Tensor, requires_grad: bool = False) -> CudaTensor:
        return Tensor._make_wrapper_subclass(  # type: ignore[attr-defined, no-any-return]
            cls,
            data.shape,
            strides=data.stride(),
            storage_offset=data.storage_offset(),
            dtype=data.dtype,
            device=CUDA,
            requires_grad=requires_grad,
        )

    def __init__(self, data: Tensor, requires_grad: bool = False) -> None:
        self.data_on_cpu = data

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Every operation on such a tensor."""
        return run(func, args, kwargs or {})

    def __getitem__(self, index: Any) -> Tensor:
        return Tensor.__getitem__(self, _without_lists(index))

    def __setitem__(self, index: Any, value: Any) -> None:
        Tensor.__setitem__(self, _without_lists(index), value)

    def tolist(self) -> Any:
        """Copies to the host first, as CUDA does."""
        return self.detach().cpu().tolist()

    def numpy(self, *_: Any, **__: Any) -> Any:
        raise TypeError(
            "can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() to copy the tensor to host memory "
            "first."
        )

    def __repr__(self) -> str:  # type: ignore[override]
        return f"CudaTensor({self.data_on_cpu})"

    def __tensor_flatten__(self) -> Any:
        return ["data_on_cpu"], None

    @staticmethod
    def __tensor_unflatten__(inner: Any, context: Any, size: Any, stride: Any) -> CudaTensor:
        return CudaTensor(inner["data_on_cpu"])

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Saved as a CPU tensor, so that files can be read without the pretend device."""
        data = self.detach().data_on_cpu  # type: ignore[attr-defined]
        return self._like_me(data).__reduce_ex__(protocol)

    def __deepcopy__(self, memo: Any) -> Tensor:
        memo[id(self)] = copy = self._like_me(CudaTensor(self.detach().data_on_cpu.clone()))  # type: ignore[attr-defined]
        return copy

    def _like_me(self, data: Tensor) -> Tensor:
        return torch.nn.Parameter(data, self.requires_grad) if getattr(self, "_is_param", False) else data


def _without_lists(index: Any) -> Any:
    """Lists as indices are copied to the device, for which the host waits."""
    if isinstance(index, tuple):
        return tuple(map(_without_lists, index))
    if isinstance(index, list):
        note("to_gpu", "list as index")
        return CudaTensor(torch.tensor(index, device=CPU))
    return index


class DispatchMode(TorchDispatchMode):
    """Brings operations to :func:`run` that have no tensor of the device among their arguments."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Every operation there is."""
        return run(func, args, kwargs or {})


# --- generators and pinned memory, which tensors do not show ---------------------------------------------------------

_generators_on_cuda: set[int] = set()  # addresses: a dispatch mode is handed another Python object
_CPUGenerator = torch.Generator


class Generator(_CPUGenerator):
    """A CPU generator that may claim to be the device's."""

    def __new__(cls, device: Any = "cpu") -> Generator:
        self = super().__new__(cls, "cpu")
        on_cuda = torch.device(device).type == "cuda"
        (_generators_on_cuda.add if on_cuda else _generators_on_cuda.discard)(self._cdata)  # type: ignore[attr-defined]
        return self

    def __init__(self, device: Any = "cpu") -> None:
        pass


_pinned: dict[int, StorageWeakRef] = {}


def pin(tensor: Tensor, *_: Any, **__: Any) -> Tensor:
    """A copy in memory that the device can read while the host goes on."""
    copy = tensor.clone()
    storage = copy.untyped_storage()
    _pinned[storage.data_ptr()] = StorageWeakRef(storage)
    return copy


def is_pinned(tensor: Tensor, *_: Any, **__: Any) -> bool:
    """Whether :func:`pin` made the memory of a tensor."""
    if isinstance(tensor, CudaTensor) or tensor.device.type != "cpu":
        return False
    storage = _pinned.get(tensor.untyped_storage().data_ptr())
    return storage is not None and not storage.expired()


# --- running an operation --------------------------------------------------------------------------------------------


def note(kind: str, operation: Any) -> None:
    """Enter a wait in every recording that is open."""
    if records:
        entry = kind, str(operation).removeprefix("aten."), line_of_the_project()
        for record in records:
            record.waits[entry] += 1


def is_cuda(device: Any) -> bool:
    """Whether a device argument names the pretend device."""
    return device is not None and torch.device(device).type == "cuda"


def run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Refuse, note, and compute an operation on the data of its operands."""
    name = func.overloadpacket.__name__
    flat, spec = tree_flatten((args, kwargs))
    tensors = [value for value in flat if isinstance(value, Tensor)]
    cuda = [tensor for tensor in tensors if isinstance(tensor, CudaTensor)]
    device = kwargs.get("device")
    to_cuda = is_cuda(device) or (device is None and bool(cuda))
    _check_generator(func, flat, to_cuda)
    if cuda:
        _check_devices(func, name, args, tensors)
        _check_determinism(func, name, args, kwargs)
        _note_waits(func, name, args, kwargs, cuda)
    elif name == "_to_copy" and is_cuda(device):
        _note_copy(func, tensors[0], kwargs)
    if name not in VIEWS and (cuda or is_cuda(device)):
        for record in records:
            record.operations[name] += 1
    plain = [value.data_on_cpu if isinstance(value, CudaTensor) else value for value in flat]
    out = _on_cpu(func, *tree_unflatten(plain, spec))
    if name == "_local_scalar_dense":
        return out
    if not to_cuda:  # never the operand's own data
        return out.clone() if cuda and any(out is value for value in plain) else out
    wrapped = tree_map_only(Tensor, _wrapped, out)
    aliases = any(result.alias_info for result in func._schema.returns)  # otherwise the result is a new tensor
    if aliases and any(isinstance(value, CudaTensor) for value in tree_flatten(args)[0]):
        return return_and_correct_aliasing(func, args, kwargs, wrapped)
    return wrapped


def _on_cpu(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    if is_cuda(kwargs.get("device")):
        kwargs = {**kwargs, "device": CPU}
    if "pin_memory" in kwargs:
        kwargs = {**kwargs, "pin_memory": None}
    return func(*args, **kwargs)


def _wrapped(tensor: Tensor) -> Tensor:
    return tensor if isinstance(tensor, CudaTensor) or tensor.device.type == "meta" else CudaTensor(tensor)


def _check_generator(func: Any, flat: list[Any], to_cuda: bool) -> None:
    for value in flat:
        if isinstance(value, _CPUGenerator) and (value._cdata in _generators_on_cuda) != to_cuda:  # type: ignore[attr-defined]
            wanted, got = ("cuda", "cpu") if to_cuda else ("cpu", "cuda")
            raise RuntimeError(f"Expected a '{wanted}' device type for generator but found '{got}' ({func})")


def _check_devices(func: Any, name: str, args: Any, tensors: list[Tensor]) -> None:
    """Two devices in one operation, but for scalars of pointwise operations and indices on the CPU."""
    others = [tensor for tensor in tensors if not isinstance(tensor, CudaTensor)]
    if not others or name in TWO_DEVICES:
        return
    if name in INDEXING:
        own, value = args[0], args[2] if len(args) > 2 else None
        indexed_by_cuda = any(isinstance(index, CudaTensor) for index in args[1] if index is not None)
        apart = isinstance(value, Tensor) and value.dim() > 0
        apart = apart and isinstance(value, CudaTensor) != isinstance(own, CudaTensor)
        if not apart and (isinstance(own, CudaTensor) or not indexed_by_cuda):
            note("index", func)
            return
    elif torch.Tag.pointwise in func.tags or name in POINTWISE or name.startswith("_foreach"):
        others = [tensor for tensor in others if tensor.dim() > 0 or tensor.device.type == "meta"]
        if not others:
            return
    raise RuntimeError(
        f"Expected all tensors to be on the same device, but found at least two devices, cuda:0 and "
        f"{others[0].device}! ({func})"
    )


def _check_determinism(func: Any, name: str, args: Any, kwargs: dict[str, Any]) -> None:
    """What has no deterministic kernel on CUDA, where ``deterministic: true`` asks for one."""
    strict = torch.are_deterministic_algorithms_enabled() and not torch.is_deterministic_algorithms_warn_only_enabled()
    sums = name.startswith("cumsum") and kwargs.get("dtype", args[0].dtype).is_floating_point
    weighted = name == "bincount" and (len(args) > 1 or "weights" in kwargs)
    if strict and (sums or weighted or name in NOT_DETERMINISTIC):
        raise RuntimeError(f"{func} does not have a deterministic implementation")


def _note_waits(func: Any, name: str, args: Any, kwargs: dict[str, Any], cuda: list[CudaTensor]) -> None:
    if name in READS:
        note("value", func)
    sized = name in SIZED_BY_VALUES or (name == "repeat_interleave" and kwargs.get("output_size") is None)
    masks = name in INDEXING and any(
        getattr(index, "dtype", None) in (torch.bool, torch.uint8) for index in args[1] if index is not None
    )
    if sized or masks:
        note("shape", func)
    if name.startswith(("linalg_", "_linalg")) and name not in ("linalg_vector_norm", "linalg_cross"):
        note("linalg", func)
    if name == "_to_copy" and kwargs.get("device") is not None and not is_cuda(kwargs["device"]):
        note("to_cpu", func)
    if name == "copy_" and isinstance(args[0], CudaTensor) != isinstance(args[1], CudaTensor):
        non_blocking = (len(args) > 2 and args[2]) or kwargs.get("non_blocking")
        host = args[1] if isinstance(args[0], CudaTensor) else args[0]
        if not (non_blocking and is_pinned(host)):
            note("to_gpu" if isinstance(args[0], CudaTensor) else "to_cpu", func)


def _note_copy(func: Any, source: Tensor, kwargs: dict[str, Any]) -> None:
    if source.device.type != "meta" and not (kwargs.get("non_blocking") and is_pinned(source)):
        note("to_gpu", func)


def through_the_cpu(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """``torch.tensor`` and its like, which leave dispatch modes out: made on the CPU, then copied."""

    def made(data: Any, *args: Any, device: Any = None, **kwargs: Any) -> Tensor:
        target = torch.empty(0).device if device is None else torch.device(device)
        if isinstance(data, CudaTensor):
            return data.to(CUDA if device is None else device, kwargs.get("dtype"))
        if target.type != "cuda":
            return make(data, *args, device=target, **kwargs)
        return make(data, *args, device=CPU, **kwargs).to(target)

    return made
