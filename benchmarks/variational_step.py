"""Training steps of C-LoRA and BLoB over MAP's, and ten fanned-out samples over ten forward passes, in turns.

    OMP_NUM_THREADS=1 python benchmarks/variational_step.py        (a random Llama of 46M parameters on the CPU)
    python benchmarks/variational_step.py --device cuda            (a random Llama-2-7B in nf4, nothing is downloaded)
    python benchmarks/variational_step.py --small                  (the same code in seconds; its numbers mean nothing)

All share the weights of one base, LoRA with r = 8 on q and v, and go through the real trainer, a round of steps each in
turn, on the same batches. Questions are random tokens whose lengths follow ARC-Easy's. Times are wall-clock on a GPU;
on a CPU they are the process's CPU time, which other processes disturb less.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from typing import Any
from unittest.mock import patch

import torch
from contest import fit, loader_of
from gpu_7b import SIZES as LARGE
from gpu_7b import Release, adapter, nf4_llama, questions, share
from lightning.pytorch import Callback
from measure import begin, ratios, spread
from torch import nn

from bayeslora.lightning_modules import multiple_choice
from bayeslora.lightning_modules.blob import BLoBModule
from bayeslora.lightning_modules.c_lora import CLoRAModule
from bayeslora.lightning_modules.lora import LoRAModule
from bayeslora.lightning_modules.multiple_choice import MultipleChoiceModule
from bayeslora.models.loading import Backbone, wrap
from bayeslora.types import AnswerBatch

SIZES = {"hidden_size": 384, "intermediate_size": 1024, "num_hidden_layers": 12, "num_attention_heads": 6}
SMALL = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
VOCABULARY = 32000
SAMPLES = 10
TARGETS = {"C-LoRA": "<= 1.3", "C-LoRA, one E a row": "", "C-LoRA without context": "", "BLoB": "<= 1.25"}
Clock = Callable[[], float]


class Watch(Callback):
    """Seconds between the end of the first step and the end of the last."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.times: list[float] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Read the clock."""
        if batch_idx == 0 or trainer.global_step == trainer.max_steps:
            self.times.append(self.clock())

    @property
    def seconds(self) -> float:
        """What passed."""
        return self.times[1] - self.times[0]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the script: see its first lines."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batches", type=int, nargs="+", default=[4, 16], help="questions in a batch")
    parser.add_argument("--rounds", type=int, default=5, help="rounds that count, after one to warm up")
    parser.add_argument("--steps", type=int, default=6, help="optimiser steps of each side in a round")
    options = begin(parser, arguments)
    device = options.device
    base = nf4_llama(SMALL if options.small else LARGE, device) if device.type == "cuda" else llama(options.small)
    modules = contestants(base, device)
    for batch in options.batches:
        train(modules, batch, options)
    for batch in options.batches:
        predict(modules, batch, options)


def llama(small: bool) -> nn.Module:
    """A random Llama."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(vocab_size=VOCABULARY, **(SMALL if small else SIZES))).requires_grad_(False)


def contestants(base: nn.Module, device: torch.device) -> dict[str, MultipleChoiceModule]:
    """MAP first; all around the same base."""
    backbone = Backbone("random", quantization="4bit" if device.type == "cuda" else "none")
    common: dict[str, Any] = {"backbone": backbone, "lora": adapter(0.0), "support": "options"}
    modules: dict[str, MultipleChoiceModule] = {
        "MAP": LoRAModule(**common, prior_std=0.1),
        "C-LoRA": CLoRAModule(**common, samples=SAMPLES),
        "C-LoRA, one E a row": CLoRAModule(**common, samples=SAMPLES, context="sequence"),
        "C-LoRA without context": CLoRAModule(**common, samples=SAMPLES, context="free"),
        "BLoB": BLoBModule(**common, samples=SAMPLES),
    }
    with patch.object(
        multiple_choice, "load_answer_model", lambda backbone, lora, *_: wrap(share(base), backbone, lora, 0)
    ):
        for module in modules.values():
            module.configure_model()
    return modules


def train(modules: dict[str, MultipleChoiceModule], batch: int, options: argparse.Namespace) -> None:
    """Steps of all, a round each in turn, over MAP's."""
    seconds: dict[str, list[float]] = {name: [] for name in modules}
    for turn in range(options.rounds + 1):
        for name, module in modules.items():
            taken = round_of(module, batch, options.steps, options.device)
            if turn:
                seconds[name].append(taken / options.steps)
    print(f"training, batch {batch}, MAP's step {spread([1000 * s for s in seconds['MAP']], 0)} ms", flush=True)
    for name, target in TARGETS.items():
        print("  " + ratios(f"step, {name} / MAP", seconds[name], seconds["MAP"], target), flush=True)


def round_of(module: MultipleChoiceModule, batch: int, steps: int, device: torch.device) -> float:
    """Seconds of so many steps, after one that is not counted."""
    model, watch = module.model, Watch(clock_of(device))
    fit(module, steps + 1, device, [watch, Release()], train_dataloaders=loader_of(questions(), batch))  # type: ignore[arg-type]
    module.model = model
    return watch.seconds


def predict(modules: dict[str, MultipleChoiceModule], batch: int, options: argparse.Namespace) -> None:
    """Ten samples in one pass over the same in ten passes."""
    device = options.device
    one = next(iter(loader_of(questions(), batch))).to(device)
    for name in ("C-LoRA", "BLoB"):
        module = modules[name]
        module.model.train(False).to(device)
        fanned, single = [], []
        for _ in range(options.rounds + 1):
            fanned.append(predicted(module, one, None, device))
            single.append(predicted(module, one, 1, device))
        print(f"prediction, batch {batch}, {name}, ten passes {spread([1000 * s for s in single[1:]], 0)} ms")
        print("  " + ratios(f"one pass of {SAMPLES} samples / {SAMPLES} passes", fanned[1:], single[1:]), flush=True)


@torch.no_grad()
def predicted(module: MultipleChoiceModule, batch: AnswerBatch, chunk: int | None, device: torch.device) -> float:
    """Seconds until the averaged probabilities are there, ``chunk`` samples in a pass."""
    module.chunk, clock = chunk, clock_of(device)
    began = clock()
    with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
        module.predictive(batch).probs.tolist()
    return clock() - began


def clock_of(device: torch.device) -> Clock:
    """CPU seconds of the process, or wall-clock seconds once the GPU has finished."""
    if device.type != "cuda":
        return time.process_time

    def finished() -> float:
        """The time when the GPU has done what it was given."""
        torch.cuda.synchronize()
        return time.perf_counter()

    return finished


if __name__ == "__main__":
    main()
