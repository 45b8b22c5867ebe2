"""A training step of M members stacked on one base, against one member's step and against M peft steps in a row.

    python benchmarks/ensemble_fit.py            (under 10 minutes on a CPU; on a GPU a 7B-shaped base)
    python benchmarks/ensemble_fit.py --tiny     (the same code in seconds; its numbers mean nothing)

A step is a forward and a backward pass and AdamW; every member has a batch of its own of 4 questions of one length.
Bases are random Llamas, in float32 (bfloat16 on a GPU) and in nf4; on a CPU with a small vocabulary, so that the head,
which peft's side computes at every position, does not decide. Contestants take turns. On a CPU, CPU time is counted.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from contest import loader_of
from gpu_7b import SIZES, VOCABULARY, adapter, nf4_llama, share
from measure import machine, quiet, ratios, spread
from plain_loop import PlainLoop
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from bayeslora.datamodules.encode import Encoded
from bayeslora.lightning_modules.ensemble import LoRAEnsemble
from bayeslora.models.loading import Backbone, wrap
from bayeslora.types import AnswerBatch

BATCH = 4
LAYERS = {"num_hidden_layers": 4, "num_attention_heads": 4, "vocab_size": 1024}
SMALL = {"hidden_size": 192, "intermediate_size": 512, **LAYERS}
TINY = {"hidden_size": 64, "intermediate_size": 128, **LAYERS}
VIEWS = {
    "view",
    "_unsafe_view",
    "transpose",
    "t",
    "select",
    "slice",
    "expand",
    "unsqueeze",
    "squeeze",
    "detach",
    "alias",
}


def main() -> None:
    """Run the script: see its first lines."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tiny", action="store_true", help="a model of no interest, to see the script run")
    parser.add_argument("--rounds", type=int, default=2, help="rounds that count, after one to warm up")
    parser.add_argument("--tokens", type=int, nargs="+", default=[300, 600, 1200], help="of a member in a step")
    parser.add_argument("--members", type=int, nargs="+", default=[5, 10])
    parser.add_argument("--bases", nargs="+", choices=("plain", "nf4"), default=["plain", "nf4"])
    options = parser.parse_args()
    quiet()
    print(machine())
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    sizes = TINY if options.tiny else SIZES if device.type == "cuda" else SMALL
    for kind in options.bases:
        base = nf4_llama(sizes, device) if kind == "nf4" else plain_llama(sizes, device)
        print(f"{kind}: random Llama {sizes}, {BATCH} questions a member, {options.rounds} rounds")
        print(operations(base, options.members, device))
        for tokens in options.tokens:
            for members in options.members:
                contest(base, members, tokens, options.rounds, device)


def plain_llama(sizes: dict[str, int], device: torch.device) -> nn.Module:
    """A random Llama that is not quantised."""
    from transformers import AutoModelForCausalLM, LlamaConfig

    torch.manual_seed(0)
    config = LlamaConfig(**{"vocab_size": VOCABULARY, "max_position_embeddings": 4096, "use_cache": False, **sizes})
    with torch.device(device):
        dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
        return AutoModelForCausalLM.from_config(config, dtype=dtype).requires_grad_(False)


def questions(tokens: int, batches: int) -> list[Encoded]:
    """Random questions, so long that ``BATCH`` of them have so many tokens."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randint(10, 1000, (BATCH * batches, tokens // BATCH), generator=generator).tolist()
    return [Encoded((row,), None, (3, 4, 5, 6), index % 4) for index, row in enumerate(rows)]


class Stacked:
    """An ensemble and its optimiser.

    Args:
        base: The base, whose weights are shared.
        members: How many.
        device: Where it is.
    """

    def __init__(self, base: nn.Module, members: int, device: torch.device) -> None:
        self.module = LoRAEnsemble(Backbone("random"), adapter(0.0), members, support="options")
        self.module.model = wrap(share(base), self.module.backbone, self.module.lora, seed=0)
        self.module.stack()
        self.module.model.to(device).train()
        self.places, self.device = range(members), device
        self.optimizer = torch.optim.AdamW(self.module.trainable().values(), lr=1e-4)

    def passes(self, batches: Sequence[AnswerBatch]) -> None:
        """Forward and backward."""
        with precision(self.device):
            loss = self.module.member_losses(self.places, batches).sum()
        self.optimizer.zero_grad()
        loss.backward()

    def step(self, batches: Sequence[AnswerBatch]) -> None:
        """Forward, backward, AdamW."""
        self.passes(batches)
        self.optimizer.step()


def precision(device: torch.device) -> AbstractContextManager[Any]:
    """bfloat16 on a GPU, where models are trained so; float32 elsewhere."""
    return torch.autocast("cuda", torch.bfloat16) if device.type == "cuda" else nullcontext()


def contest(base: nn.Module, members: int, tokens: int, rounds: int, device: torch.device) -> None:
    """Steps of all members together, of one, and of M peft models in a row, in turns."""
    encoded = questions(tokens, members)
    batches = [batch.to(device) for batch in loader_of(encoded, BATCH)]
    joint, solo = Stacked(base, members, device), Stacked(base, 1, device)
    plain = PlainLoop(share(base), adapter(0.0), encoded, BATCH, members * (rounds + 1), device, device.type == "cuda")
    contestants: dict[str, Callable[[], Any]] = {
        "joint": lambda: joint.step(batches),
        "solo": lambda: solo.step(batches[:1]),
        "peft": lambda: plain.run(members),
    }
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(rounds + 1):
        for name, step in contestants.items():
            seconds[name].append(timed(step, device))
    kept = {name: values[1:] for name, values in seconds.items()}
    times = ", ".join(f"{name} {spread([1000 * s for s in values], 0)}" for name, values in kept.items())
    print(f"{tokens} tokens a member, M = {members}, ms: {times}")
    print("  " + ratios("time, joint / one member's step", kept["joint"], kept["solo"]))
    one_by_one = [members * seconds for seconds in kept["solo"]]
    print("  " + ratios("speed, joint / M steps of one member", one_by_one, kept["joint"]))
    print("  " + ratios("speed, joint / M peft steps", kept["peft"], kept["joint"]))


def timed(step: Callable[[], Any], device: torch.device) -> float:
    """Seconds of a step: of the wall clock on a GPU, of this process's CPU time elsewhere."""
    clock = time.perf_counter if device.type == "cuda" else time.process_time
    if device.type == "cuda":
        torch.cuda.synchronize()
    began = clock()
    step()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return clock() - began


class Operations(TorchDispatchMode):
    """Counts dispatched operations that are no views."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += function.overloadpacket.__name__ not in VIEWS
        return function(*args, **(kwargs or {}))


def operations(base: nn.Module, members: Sequence[int], device: torch.device) -> str:
    """A line with the operations of a forward and a backward pass of 1 and of M members."""
    counts = {}
    for number in (1, *members):
        stacked = Stacked(base, number, device)
        batches = [batch.to(device) for batch in loader_of(questions(64, number), BATCH)]
        with Operations() as counted:
            stacked.passes(batches)
        counts[number] = counted.count
    ratio = ", ".join(f"M = {number}: {counts[number]} ({counts[number] / counts[1]:.2f}x)" for number in members)
    return f"operations of a pass, one member: {counts[1]}, {ratio}  (target <= 1.1x)"


if __name__ == "__main__":
    main()
