"""Training on ARC-Easy at batch 16 against a plain transformers + peft + AdamW loop, in turns.

    python benchmarks/fit_step.py --data-dir DATA

The model is a random Llama with the Llama-2 tokenizer's 32000 tokens, on a GPU where there is one. Peak memory: on a
CPU the peak resident size (VmHWM) of a process that runs one side alone, on batches of the longest questions; on a
GPU what torch had allocated at most.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import torch
from contest import fit, loader_of, rates, throughput
from measure import MIB, Alternate, Meter, machine, quiet, ratios, resident, spread
from plain_loop import PlainLoop
from torch import nn

from bayeslora.datamodules import ARCDataModule
from bayeslora.datamodules.encode import Encoded
from bayeslora.lightning_modules.lora import LoRAModule
from bayeslora.models.answer_model import AnswerModel
from bayeslora.models.loading import Backbone, LoRA, load_answer_model
from bayeslora.models.sites import SiteDropout
from bayeslora.types import AnswerBatch, Samples

BATCH = 16
LORA = LoRA(r=8, alpha=16, dropout=0.0, target_modules=["q_proj", "v_proj"])
SIZES = {"hidden_size": 384, "intermediate_size": 1024, "num_hidden_layers": 12, "num_attention_heads": 6}
TINY = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
MEMORY_STEPS = 2


def main() -> None:
    """Run the script: see its first lines."""
    options = arguments()
    quiet()
    if options.peak_of:
        print(*peak_of(options.peak_of, options.model, datamodule(options.data_dir)))
        return
    print(machine())
    with tempfile.TemporaryDirectory() as folder:
        save_random_llama(folder, TINY if options.tiny else SIZES)
        speed(folder, options)
        if not torch.cuda.is_available():
            memory(folder, options)
        dropout(folder, options)


def arguments() -> argparse.Namespace:
    """The options of the script."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", default=os.environ.get("BAYESLORA_DATA", "../shared/data"))
    parser.add_argument("--rounds", type=int, default=5, help="rounds that count, after one step to warm up")
    parser.add_argument("--steps", type=int, default=4, help="optimiser steps of each side in a round")
    parser.add_argument("--tiny", action="store_true", help="a model of no interest, to see the script run")
    parser.add_argument("--peak-of", choices=("ours", "plain"), help=argparse.SUPPRESS)
    parser.add_argument("--model", help=argparse.SUPPRESS)
    return parser.parse_args()


def datamodule(data_dir: str) -> ARCDataModule:
    """ARC-Easy with the Llama-2 tokenizer where it lies beside the data, else the embedded one."""
    tokenizer = Path(data_dir).parent / "tokenizers" / "llama2"
    return ARCDataModule(
        "ARC-Easy", data_dir=data_dir, batch_size=BATCH, tokenizer=str(tokenizer) if tokenizer.exists() else "embedded"
    )


def save_random_llama(folder: str, sizes: dict[str, int]) -> None:
    """A Llama with random weights, where both sides load it from."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(vocab_size=32000, max_position_embeddings=1024, **sizes))
    model.save_pretrained(folder)
    layers = sum(p.numel() for p in model.model.layers.parameters())
    every = sum(p.numel() for p in model.parameters())
    print(f"model: random Llama {sizes}, {every / 1e6:.0f}M parameters, {layers / 1e6:.0f}M of them in its layers")


def our_side(folder: str) -> LoRAModule:
    """The package's module on the base."""
    return LoRAModule(Backbone(folder), LORA)


def plain_side(folder: str, encoded: list[Encoded], steps: int) -> PlainLoop:
    """The same model in a plain loop of peft."""
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(folder).to(device())
    return PlainLoop(base, LORA, encoded, BATCH, steps, device(), autocast=device().type == "cuda")


def speed(folder: str, options: argparse.Namespace) -> None:
    """Examples per second of both, in turns, through the real trainer and DataModule."""
    rounds = [1] + [options.steps] * options.rounds
    data = datamodule(options.data_dir)
    data.setup("fit")
    plain = plain_side(folder, data.encoded("train"), sum(rounds))
    turns = Alternate(plain.run, rounds, plain.device)
    fit(our_side(folder), sum(rounds), plain.device, [turns], datamodule=data)
    ours, theirs = turns.kept
    print(f"training, batch {BATCH}, LoRA r=8 on q and v, dropout 0, {options.rounds} rounds of {options.steps} steps")
    print(rates("ours ", ours))
    print(rates("plain", theirs))
    print(ratios("throughput, ours / plain", throughput(ours), throughput(theirs), ">= 1.3"))
    if plain.device.type == "cuda":
        print(ratios("peak memory, ours / plain", [r.peak for r in ours], [r.peak for r in theirs], "<= 1"))


def memory(folder: str, options: argparse.Namespace) -> None:
    """Peak resident size of either side in a process of its own."""
    peaks, rises = {}, {}
    for side in ("ours", "plain"):
        script = [sys.executable, __file__, "--peak-of", side, "--model", folder, "--data-dir", options.data_dir]
        output = subprocess.run(script, check=True, capture_output=True, text=True).stdout.splitlines()[-1]
        peaks[side], rises[side] = map(int, output.split())
    print(f"peak resident size of a process, {MEMORY_STEPS} steps on the longest questions, MiB")
    for side in peaks:
        print(f"  {side}: {peaks[side] / MIB:.0f}, of which {rises[side] / MIB:.0f} above the level before training")
    print(f"peak memory, ours / plain: {peaks['ours'] / peaks['plain']:.2f}x  (target <= 1)")


def peak_of(side: str, folder: str, data: ARCDataModule) -> tuple[int, int]:
    """Peak resident bytes of this process after training one side, and how far that is above where it started."""
    data.setup("fit")
    longest = sorted(data.encoded("train"), key=lambda item: item.length)[-BATCH * MEMORY_STEPS :]
    if side == "plain":
        loop = plain_side(folder, longest, MEMORY_STEPS)
        before = resident()
        loop.run(MEMORY_STEPS)
    else:
        module = our_side(folder)
        module.configure_model()
        before = resident()
        fit(module, MEMORY_STEPS, device(), [], train_dataloaders=loader_of(longest, BATCH))
    peak = resident("VmHWM")
    return peak, peak - before


def dropout(folder: str, options: argparse.Namespace) -> None:
    """A forward and backward pass under hashed dropout, torch's dropout and none, on one batch of middling length."""
    data = datamodule(options.data_dir)
    data.setup("fit")
    by_length = sorted(data.encoded("train"), key=lambda item: item.length)
    middle = len(by_length) // 2
    batch = next(iter(loader_of(by_length[middle : middle + BATCH], BATCH)))
    sides = {"none": side(folder, 0.0), "torch's": with_torchs_dropout(side(folder, 0.1)), "hashed": side(folder, 0.1)}
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(options.rounds + 1):
        for name, model in sides.items():
            seconds[name].append(seconds_of_a_pass(model.to(device()).train(), batch.to(device()), turn))
    times = ", ".join(f"{name} {spread([1000 * s for s in values[1:]], 0)}" for name, values in seconds.items())
    print(f"dropout 0.1, {BATCH} x {batch.input_ids.shape[1]} tokens forward and backward, ms: {times}")
    print(ratios("pass with hashed dropout / with torch's", seconds["hashed"][1:], seconds["torch's"][1:]))


def side(folder: str, rate: float) -> AnswerModel:
    """An answer model with LoRA's dropout at a rate."""
    return load_answer_model(Backbone(folder), replace(LORA, dropout=rate), seed=0)


def with_torchs_dropout(model: AnswerModel) -> AnswerModel:
    """The model with torch's own dropout, which draws from the global generator, at every site."""
    for parent in model.modules():
        for name, child in parent.named_children():
            if isinstance(child, SiteDropout):
                parent._modules[name] = nn.Dropout(child.p)
    return model


def seconds_of_a_pass(model: AnswerModel, batch: AnswerBatch, draw: int) -> float:
    """Forward and backward."""
    meter = Meter(device())
    meter.start()
    logits = model(batch, Samples(draws=torch.tensor([draw]))).logits[0]
    nn.functional.cross_entropy(logits, batch.label).backward()
    return meter.stop().seconds


def device() -> torch.device:
    """The GPU where there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


if __name__ == "__main__":
    main()
