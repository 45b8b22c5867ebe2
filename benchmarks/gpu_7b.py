"""A Llama-2-7B-shaped model in nf4 on a GPU: training against a plain loop in turns, and MC-dropout evaluation.

    python benchmarks/gpu_7b.py            (a GPU with 24 GiB or more, under 8 minutes)
    python benchmarks/gpu_7b.py --tiny     (the same code on a CPU in seconds; its numbers mean nothing)

Weights are random, made on the GPU and quantised there (nf4, double quantisation, bfloat16 products), so nothing is
downloaded. Questions are random tokens whose lengths follow ARC-Easy's. Both sides share the base's weights, so either
side's peak memory holds the base once, and the other side's adapter and optimiser (some 70 MB).
"""

from __future__ import annotations

import argparse
import copy
import time
from typing import Any

import torch
from contest import fit, loader_of, rates, throughput
from lightning.pytorch import Callback
from measure import Alternate, Meter, Round, machine, quiet, ratios
from plain_loop import PlainLoop
from torch import nn

from bayeslora.datamodules.encode import Encoded
from bayeslora.lightning_modules.lora import LoRAModule
from bayeslora.models.loading import Backbone, LoRA, wrap

SIZES = {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32}
TINY = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4}
VOCABULARY = 32000
# Of the log of ARC-Easy's training questions in Llama-2 tokens, and their range.
LOG_MEAN, LOG_STD, SHORTEST, LONGEST = 4.109, 0.332, 27, 210
QUESTIONS = 2251
TRAINING = ((4, 0.0), (16, 0.0), (16, 0.1))  # batch size and rate of LoRA's dropout
EVALUATION = (1, 4, 16)  # batch sizes
DRAWS = 10


class Release(Callback):
    """Lets go of the model when training ends: the trainer would carry the shared base to the CPU."""

    def on_train_end(self, trainer: Any, pl_module: LoRAModule) -> None:
        """Leave the trainer's clean-up, which comes before ``on_fit_end``, an empty module."""
        pl_module.model = None  # type: ignore[assignment]


def main() -> None:
    """Run the script: see its first lines."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tiny", action="store_true", help="a tiny model, on the CPU where there is no GPU")
    parser.add_argument("--rounds", type=int, help="rounds that count, after one to warm up")
    parser.add_argument("--steps", type=int, help="optimiser steps, or passes, of each side in a round")
    options = parser.parse_args()
    rounds, steps = options.rounds or (2 if options.tiny else 5), options.steps or (1 if options.tiny else 10)
    if not options.tiny and not torch.cuda.is_available():
        parser.error("there is no GPU here; run it where there is one, or with --tiny")
    quiet()
    began = time.perf_counter()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    print(machine())
    base = nf4_llama(TINY if options.tiny else SIZES, device)
    print(f"base: {footprint(base) / 2**30:.2f} GiB of weights, built in {time.perf_counter() - began:.0f} s")
    for batch, dropout in TRAINING:
        train(base, batch, dropout, [steps] * (rounds + 1), device)
    for batch in EVALUATION:
        evaluate(base, batch, [steps] * (rounds + 1), device)
    print(f"{time.perf_counter() - began:.0f} s in all")


# --- the model and the data ------------------------------------------------------------------------------------------


def nf4_llama(sizes: dict[str, int], device: torch.device) -> nn.Module:
    """A random Llama on the device, the linear maps of its layers in nf4 and its head in bfloat16."""
    from transformers import AutoModelForCausalLM, LlamaConfig

    torch.manual_seed(0)
    usual = {"vocab_size": VOCABULARY, "max_position_embeddings": 4096, "use_cache": False}
    config = LlamaConfig(**{**usual, **sizes})
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    for path, linear in list(model.model.named_modules()):
        if type(linear) is nn.Linear:
            model.model.set_submodule(path, nf4(linear))
    model.is_loaded_in_4bit = True  # what peft asks before it wraps 4-bit layers
    return model.requires_grad_(False)


def nf4(linear: nn.Linear, compute: torch.dtype = torch.bfloat16) -> nn.Module:
    """A linear map with its weights in nf4 and products in ``compute``, as Hugging Face's loader would make it."""
    from bitsandbytes.nn import Linear4bit, Params4bit

    with torch.device("meta"):
        layer = Linear4bit(linear.in_features, linear.out_features, bias=False, compute_dtype=compute)
    device = linear.weight.device
    weight = Params4bit(linear.weight.data, requires_grad=False, compress_statistics=True, quant_type="nf4")
    layer.weight = weight.to(device)  # quantises
    return layer


def share(base: nn.Module) -> nn.Module:
    """The same modules once more, around the same weights."""
    tensors = [*base.parameters(), *base.buffers()]
    return copy.deepcopy(base, {id(tensor): tensor for tensor in tensors})


def footprint(module: nn.Module) -> int:
    """Bytes of a module's parameters."""
    return sum(p.numel() * p.element_size() for p in module.parameters())


def questions() -> list[Encoded]:
    """Random tokens with four options each; lengths log-normal, cut to ARC-Easy's range."""
    generator = torch.Generator().manual_seed(0)
    logs = LOG_MEAN + LOG_STD * torch.randn(QUESTIONS, generator=generator)
    lengths = logs.exp().round().long().clamp(SHORTEST, LONGEST).tolist()
    labels = torch.randint(4, (QUESTIONS,), generator=generator).tolist()
    rows = [torch.randint(10, VOCABULARY, (length,), generator=generator).tolist() for length in lengths]
    return [Encoded((row,), None, (3, 4, 5, 6), label) for row, label in zip(rows, labels, strict=True)]


def adapter(dropout: float) -> LoRA:
    """LoRA as the papers have it on Llama-2-7B."""
    return LoRA(r=8, alpha=16, dropout=dropout, target_modules=["q_proj", "v_proj"])


def module_on(base: nn.Module, dropout: float, **options: Any) -> LoRAModule:
    """Our LightningModule around a base that is in memory."""
    backbone = Backbone("random", quantization="4bit")
    module = LoRAModule(backbone, adapter(dropout), support="options", **options)
    module.model = wrap(share(base), backbone, module.lora, seed=0)
    return module


# --- what is measured ------------------------------------------------------------------------------------------------


def train(base: nn.Module, batch: int, dropout: float, rounds: list[int], device: torch.device) -> None:
    """Training steps of both sides in turns."""
    encoded = questions()
    plain = PlainLoop(share(base), adapter(dropout), encoded, batch, sum(rounds), device, device.type == "cuda")
    turns = Alternate(plain.run, rounds, device)
    loader = loader_of(encoded, batch)
    fit(module_on(base, dropout), sum(rounds), device, [turns, Release()], train_dataloaders=loader)
    ours, theirs = turns.kept
    print(f"training, batch {batch}, LoRA dropout {dropout}, {len(ours)} rounds of {rounds[0]} steps")
    print(rates("ours ", ours))
    print(rates("plain", theirs))
    print("  " + ratios("throughput, ours / plain", throughput(ours), throughput(theirs)))
    if device.type == "cuda":
        print("  " + ratios("peak memory, ours / plain", [r.peak for r in ours], [r.peak for r in theirs]))


def evaluate(base: nn.Module, batch: int, rounds: list[int], device: torch.device) -> None:
    """MC dropout: all draws fanned out over one pass, against a pass for each draw, in turns."""
    module = module_on(base, 0.1, samples=DRAWS)
    module.model.train(False).to(device)
    batches = [part.to(device) for part, _ in zip(loader_of(questions(), batch), range(rounds[0]), strict=False)]
    fanned, single = [], []
    for _ in rounds:
        fanned.append(predict(module, batches, None, device))
        single.append(predict(module, batches, 1, device))
    print(f"evaluation, batch {batch}, {DRAWS} draws of dropout 0.1, {len(rounds) - 1} rounds of {rounds[0]} batches")
    print(rates("one pass of all draws", fanned[1:]))
    print(rates("a pass for each draw ", single[1:]))
    print("  " + ratios("throughput, one pass / passes", throughput(fanned[1:]), throughput(single[1:])))


def predict(module: LoRAModule, batches: list[Any], chunk: int | None, device: torch.device) -> Round:
    """Predict the batches as ``test`` does, ``chunk`` draws in a pass; None takes as many as memory holds."""
    module.chunk = chunk
    meter = Meter(device)
    meter.start()
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda")
    with torch.no_grad(), autocast:
        for batch in batches:
            module.predictive(batch)
            meter.add(batch.attention_mask)
    return meter.stop()


if __name__ == "__main__":
    main()
