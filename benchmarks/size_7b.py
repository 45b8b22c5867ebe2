"""A model of Llama-2-7B's true width in nf4 on the CPU: what each method needs above the model, layer by layer.

    OMP_NUM_THREADS=2 python benchmarks/size_7b.py                 (1, 2 and 4 of the 32 layers, a line through them)
    OMP_NUM_THREADS=2 python benchmarks/size_7b.py --forward       (all 32 layers, what is a forward pass)
    python benchmarks/size_7b.py --tiny                            (the same code in seconds; its figures mean nothing)

Weights are random, made layer by layer and quantised from float32 (nf4, double quantisation), so nothing is downloaded
and no more than one layer is ever held whole. Arithmetic is float32 from end to end: CPUs without AVX-512 multiply
bfloat16 matrices up to hundreds of times slower (pytorch #146508). One question of a few tokens, batch 1, LoRA r = 8 on
q and v.

Peaks are of resident memory above what is held before (VmHWM, reset before each). Activations are counted too: bytes
that autograd keeps for the backward pass of one token, in float32 and under the bfloat16 autocast that a GPU uses. They
do not depend on the device, and no backward pass is needed to count them.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from contest import fit as train
from contest import loader_of
from gpu_7b import SIZES, TINY, VOCABULARY, adapter, footprint, nf4, share
from laplace_lora import batches_of
from laplace_lora import fit as laplace
from measure import machine, quiet, resident
from torch import Tensor, nn

from bayeslora.datamodules.encode import Encoded
from bayeslora.lightning_modules import multiple_choice
from bayeslora.lightning_modules.blob import BLoBModule
from bayeslora.lightning_modules.c_lora import CLoRAModule
from bayeslora.lightning_modules.ensemble import LoRAEnsemble
from bayeslora.lightning_modules.lora import LoRAModule
from bayeslora.lightning_modules.multiple_choice import MultipleChoiceModule
from bayeslora.models.loading import Backbone, wrap
from bayeslora.posteriors.swag import Layout, Moments
from bayeslora.types import Samples

CPU = torch.device("cpu")
BACKBONE = Backbone("random", quantization="4bit")
SAMPLES, RANK, MEMBERS = 10, 20, 3
GB, MB = 1e9, 1e6
Tasks = dict[str, Callable[[], Any]]


def main(arguments: list[str] | None = None) -> None:
    """Run the script: see its first lines."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--forward", action="store_true", help="all 32 layers: what is a forward pass alone")
    parser.add_argument("--tokens", type=int, default=32, help="of the question")
    parser.add_argument("--tiny", action="store_true", help="a tiny model, to see the script run")
    options = parser.parse_args(arguments)
    quiet()
    print(machine())
    sizes = TINY if options.tiny else SIZES
    for first in steps(built({**TINY, "num_hidden_layers": 1}), options.tokens).values():
        first()  # whatever is imported, or set up once
    peaks: dict[int, dict[str, float]] = {}
    for layers in [sizes["num_hidden_layers"]] if options.forward else options.layers:
        base = built({**sizes, "num_hidden_layers": layers})
        tasks = passes(base, options.tokens) if options.forward else {**steps(base, options.tokens)}
        peaks[layers] = {name: measured(name, task) for name, task in tasks.items()}
        print(f"{layers} layers: " + ", ".join(activations(base, options.tokens)), flush=True)
    if len(peaks) > 1:
        print("\n".join(extrapolated(peaks, SIZES["num_hidden_layers"])))


# --- the model -------------------------------------------------------------------------------------------------------


def built(sizes: dict[str, int]) -> nn.Module:
    """A random Llama whose layers are in nf4, made one linear map at a time."""
    from transformers import AutoModelForCausalLM, LlamaConfig

    before, began = level(), time.perf_counter()
    generator = torch.Generator().manual_seed(0)
    config = LlamaConfig(**{"vocab_size": VOCABULARY, "max_position_embeddings": 4096, "use_cache": False, **sizes})
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    for path in [path for path, module in model.model.named_modules() if type(module) is nn.Linear]:
        linear = model.model.get_submodule(path)  # one at a time: nobody holds what it was made from
        linear.weight = random_like(linear.weight, generator)
        model.model.set_submodule(path, nf4(linear, torch.float32))
    del linear
    for module in model.modules():
        for name, value in list(module.named_parameters(recurse=False)):
            if value.is_meta:
                one = name == "weight" and value.dim() == 1
                setattr(module, name, nn.Parameter(torch.ones(value.shape)) if one else random_like(value, generator))
    model.model.rotary_emb = type(model.model.rotary_emb)(config=config)
    model.is_loaded_in_4bit = True  # what peft asks before it wraps 4-bit layers
    held, peak = resident() - before, resident("VmHWM") - before
    print(
        f"{config.num_hidden_layers} layers: {footprint(model) / GB:.2f} GB of weights, {held / GB:.2f} GB resident, "
        f"{peak / GB:.2f} GB at the peak, built in {time.perf_counter() - began:.0f} s",
        flush=True,
    )
    return model.requires_grad_(False)


def random_like(weight: Tensor, generator: torch.Generator) -> nn.Parameter:
    """A weight of a usual size."""
    return nn.Parameter(torch.empty(weight.shape).normal_(0, 0.02, generator=generator), requires_grad=False)


def module_of(kind: type[MultipleChoiceModule], base: nn.Module, **options: Any) -> MultipleChoiceModule:
    """A method's module around the base, whose weights all modules share."""
    module = kind(backbone=BACKBONE, lora=adapter(0.0), support="options", **options)
    make = patch.object(
        multiple_choice, "load_answer_model", lambda backbone, lora, *_: wrap(share(base), backbone, lora, 0)
    )
    with make:
        module.configure_model()
    return module


# --- what is measured ------------------------------------------------------------------------------------------------


def steps(base: nn.Module, tokens: int) -> Tasks:
    """A training step of each method through the real trainer, and all that is a forward pass."""
    kinds: dict[str, tuple[type[MultipleChoiceModule], dict[str, Any]]] = {
        "step, MLE": (LoRAModule, {}),
        "step, BLoB": (BLoBModule, {}),
        "step, C-LoRA": (CLoRAModule, {}),
        f"step, ensemble of {MEMBERS}": (LoRAEnsemble, {"members": MEMBERS, "share_data_order": True}),
    }

    def step(kind: type[MultipleChoiceModule], options: dict[str, Any]) -> None:
        """A training step of a method."""
        module = module_of(kind, base, **options)
        train(module, 1, CPU, [], train_dataloaders=loader_of(questions(tokens), 1))  # type: ignore[arg-type]

    rows = lambda: laplace("full", module_of(LoRAModule, base).model.eval(), batches_of(2, tokens, 2))  # noqa: E731
    return {
        **{name: lambda own=own: step(*own) for name, own in kinds.items()},
        **passes(base, tokens),
        "Laplace, rows of two questions and posterior": rows,
    }


def passes(base: nn.Module, tokens: int) -> Tasks:
    """What is a forward pass: one, ten samples at once; and snapshots of SWAG with a draw of ten sets of weights."""
    module = module_of(LoRAModule, base)
    (batch,) = batches_of(1, tokens, 4)
    parameters = module.weight_sets()[0]
    moments = Moments(Layout.of(parameters), RANK)

    def snapshots() -> None:
        """Two snapshots of SWAG."""
        for _ in range(2):
            moments.update(parameters)

    def sampled() -> None:
        """Ten sets of weights, drawn and predicted with in one pass."""
        bank = moments.posterior("full", 0.5, "kmax").sample(SAMPLES, torch.Generator().manual_seed(0))
        with torch.no_grad():
            module.answers(batch, Samples(bank))

    def forward() -> None:
        """One forward pass."""
        with torch.no_grad():
            module.answers(batch, None)

    return {"forward": forward, "SWAG snapshots": snapshots, f"{SAMPLES} samples in one pass": sampled}


def questions(tokens: int) -> list[Encoded]:
    """One question of four options."""
    return [Encoded((list(range(10, 10 + tokens)),), None, (3, 4, 5, 6), 0)]


def measured(name: str, task: Callable[[], Any]) -> float:
    """Bytes at the peak above what was held before."""
    before = level()
    began = time.perf_counter()
    task()
    above = resident("VmHWM") - before
    print(f"  {name}: {above / MB:.0f} MB above the model, {time.perf_counter() - began:.0f} s", flush=True)
    return above


def level() -> int:
    """Resident bytes once freed memory is given back to the system; the peak starts from here."""
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    return resident()


def activations(base: nn.Module, tokens: int) -> Iterator[str]:
    """What autograd keeps of one token: in float32, and with the base in bfloat16, which it then stays in."""
    module = module_of(LoRAModule, base)
    (batch,) = batches_of(1, tokens, 4)
    for dtype in (torch.float32, torch.bfloat16):
        for part in base.modules():
            for value in part.parameters(recurse=False):
                value.data = value.data.to(dtype) if value.is_floating_point() else value.data
            if hasattr(part, "compute_dtype"):  # of layers in nf4
                part.compute_dtype = dtype
        frozen = {value.untyped_storage().data_ptr() for value in (*module.parameters(), *module.buffers())}
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype is torch.bfloat16), kept(frozen) as sizes:
            module.answers(batch, None)
        yield f"{sum(sizes.values()) / tokens / 1000:.1f} kB a token kept in {str(dtype).removeprefix('torch.')}"


@contextmanager
def kept(frozen: set[int]) -> Iterator[dict[int, int]]:
    """Bytes of the memory that autograd saves within the block, by address, without the model's own."""
    sizes: dict[int, int] = {}
    alive: list[Tensor] = []  # so that no address is used twice

    def pack(tensor: Tensor) -> Tensor:
        """Count a tensor that autograd keeps, once a storage."""
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in frozen:
            sizes[storage.data_ptr()] = storage.nbytes()
            alive.append(tensor.detach())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield sizes


def extrapolated(peaks: dict[int, dict[str, float]], layers: int) -> Iterator[str]:
    """Least squares through the peaks: what does not depend on the layers, what each adds, and all of them."""
    x = torch.tensor([[1.0, count] for count in peaks], dtype=torch.float64)
    yield f"\n| MB above the model | {' | '.join(f'{n} layers' for n in peaks)} | fixed | a layer | {layers} layers |"
    yield "|---" * (4 + len(peaks)) + "|"
    for name in next(iter(peaks.values())):
        y = torch.tensor([own[name] / MB for own in peaks.values()], dtype=torch.float64)
        fixed, slope = torch.linalg.lstsq(x, y[:, None]).solution.flatten().tolist()
        cells = [f"{value:.0f}" for value in y.tolist()]
        yield f"| {name} | {' | '.join(cells)} | {fixed:.0f} | {slope:.1f} | {fixed + layers * slope:.0f} |"


if __name__ == "__main__":
    main()
