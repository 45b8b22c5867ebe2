"""What collecting SWAG's snapshots costs a training step, and how large its state is.

    OMP_NUM_THREADS=1 python benchmarks/swag_overhead.py     (a random Llama of 100M parameters on the CPU)
    python benchmarks/swag_overhead.py --device cuda         (the same on a GPU, bf16)
    python benchmarks/swag_overhead.py --small               (the same code in seconds; its numbers mean nothing)

A round trains a few optimiser steps through the trainer and then takes a snapshot; both are timed, wall-clock on a GPU,
as the process's CPU time on a CPU. At one snapshot every 50 steps its share of a step is snapshot / (50 * step).
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Iterator
from typing import Any

import torch
from lightning.pytorch import Trainer
from measure import MIB, begin, spread
from torch.utils.data import DataLoader, IterableDataset

from bayeslora.callbacks.swag import SWAG
from bayeslora.lightning_modules.lora import LoRAModule
from bayeslora.models.loading import Backbone, LoRA
from bayeslora.types import AnswerBatch

EVERY = 50
RANK = 20
BATCH, TOKENS, OPTIONS = 16, 64, 4
SIZES = {"hidden_size": 640, "intermediate_size": 1728, "num_hidden_layers": 12, "num_attention_heads": 10}
SMALL = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
VOCABULARY = 32000
LORA = LoRA(r=8, alpha=16, target_modules=["q_proj", "v_proj"])


class Questions(IterableDataset):
    """Random questions without end, a batch at a time."""

    def __iter__(self) -> Iterator[AnswerBatch]:
        """Batches of one length."""
        generator = torch.Generator().manual_seed(0)
        rows = torch.arange(BATCH)
        options = torch.arange(3, 3 + OPTIONS).expand(BATCH, -1)
        while True:
            ids = torch.randint(10, VOCABULARY, (BATCH, TOKENS), generator=generator)
            mask, zeros = torch.ones_like(ids), torch.zeros_like(rows)
            yield AnswerBatch(ids, mask, rows, zeros, options, torch.ones_like(options).bool(), zeros, rows, "random")


class TimedSWAG(SWAG):
    """SWAG that times every optimiser step, and what it does itself after each."""

    def __init__(self, every: int) -> None:
        super().__init__(start=0, every=every, unit="step", rank=RANK)
        self.steps: list[float] = []
        self.snapshots: list[float] = []

    def on_train_batch_start(self, *args: Any) -> None:
        """Start the clock."""
        super().on_train_batch_start(*args)
        self.began = now()

    def on_train_batch_end(self, *args: Any) -> None:
        """Read it; time the snapshot where there is one."""
        self.steps.append(now() - self.began)
        began, before = now(), self.members[0].count
        super().on_train_batch_end(*args)
        if self.members[0].count > before:
            self.snapshots.append(now() - began)


def now() -> float:
    """Seconds: wall-clock once the GPU has finished, CPU time of the process without one."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()


def main() -> None:
    """Run the script: see its first lines."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=8, help="rounds that count, after one to warm up")
    parser.add_argument("--steps", type=int, default=3, help="optimiser steps of a round")
    options = begin(parser)
    with tempfile.TemporaryDirectory() as folder:
        measure(folder, options)


def measure(folder: str, options: argparse.Namespace) -> None:
    """Train, and print the snapshot's share of a step and the size of the state."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(vocab_size=VOCABULARY, **(SMALL if options.small else SIZES))).save_pretrained(folder)
    module = LoRAModule(Backbone(folder), LORA, support="options")
    swag = TimedSWAG(options.steps)
    trainer = Trainer(
        accelerator="gpu" if options.device.type == "cuda" else "cpu",
        devices=1,
        precision="bf16-mixed" if options.device.type == "cuda" else "32-true",
        max_steps=options.steps * (options.rounds + 1),
        callbacks=[swag],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
    )
    trainer.fit(module, DataLoader(Questions(), batch_size=None))
    report(swag, module)


def report(swag: TimedSWAG, module: LoRAModule) -> None:
    """A snapshot's cost over a step's, paired by round; the first round warms up."""
    per, rounds = swag.every, range(1, len(swag.snapshots))
    steps = [statistics.median(swag.steps[per * i : per * (i + 1)]) for i in rounds]
    shares = [100 * swag.snapshots[i] / (EVERY * step) for i, step in zip(rounds, steps, strict=True)]
    numbers = sum(parameter.numel() for parameter in module.trainable().values())
    print(f"trainable parameters: {numbers}, K = {RANK}; batch {BATCH} x {TOKENS} tokens")
    print(f"step, ms: {spread([1000 * step for step in steps])}")
    print(f"snapshot, ms: {spread([1000 * swag.snapshots[i] for i in rounds])}")
    print(f"collection at one snapshot per {EVERY} steps, % of a step: {spread(shares, 4)}  (target <= 1)")
    state = swag.members[0].nbytes
    print(f"state: {state} bytes = {state / (4 * numbers):g} x 4 x trainable parameters, ")
    print(f"  {state / MIB:.1f} MiB  (target (2 + K) = {2 + RANK})")


if __name__ == "__main__":
    main()
