"""Laplace with the full matrix on a Llama-2-7B-shaped model in nf4, on a GPU: seconds and memory of fit and prediction.

    python benchmarks/laplace_7b.py                  (a GPU with 24 GB or more)
    python benchmarks/laplace_7b.py --tiny           (the same code on a CPU in seconds; its numbers mean nothing)

Weights are random and made on the GPU, nothing is downloaded. 640 questions of two options, as Winogrande's small
split; random tokens of 50. LoRA r = 8 on q, v and the head. Target: fitted within 60 s after loading, at most 2 GB
above the model and the budget for Jacobians.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import torch
from gpu_7b import SIZES, TINY, footprint, nf4_llama
from laplace_lora import batches_of, fit
from measure import machine, quiet, spread

from bayeslora.curvature.jacobian import linearised_predictive
from bayeslora.models.answer_model import AnswerModel
from bayeslora.models.loading import Backbone, LoRA, wrap
from bayeslora.streams import generator

LORA = LoRA(r=8, alpha=16, target_modules=["q_proj", "v_proj", "lm_head"])
TOKENS, OPTIONS = 50, 2
GB = 1e9


def main(arguments: Any = None) -> None:
    """Run the script: see its first lines."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tiny", action="store_true", help="a tiny model, on the CPU where there is no GPU")
    parser.add_argument("--questions", type=int, default=640)
    parser.add_argument("--structures", nargs="+", default=["full", "kfac", "ekfac", "diag"])
    options = parser.parse_args(arguments)
    if not options.tiny and not torch.cuda.is_available():
        parser.error("there is no GPU here; run it where there is one, or with --tiny")
    quiet()
    print(machine())
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = random_model(TINY if options.tiny else SIZES, device)
    rows = options.questions * (OPTIONS - 1) * sum(value.numel() for value in model.trainable().values())
    print(f"model: {footprint(model) / GB:.2f} GB; Jacobians of {options.questions} questions: {2 * rows / GB:.2f} GB")
    for structure in options.structures:
        measure(structure, model, options.questions, device)


def random_model(sizes: dict[str, int], device: torch.device) -> AnswerModel:
    """The base in nf4 with LoRA that is not zero."""
    model = wrap(nf4_llama(sizes, device), Backbone("random", quantization="4bit"), LORA, seed=0).to(device).eval()
    for name, parameter in model.trainable().items():
        if ".lora_B." in name:
            noise = torch.randn(parameter.shape, generator=generator("B", name))
            parameter.data.copy_(1e-2 * noise)
    return model


def measure(structure: str, model: AnswerModel, questions: int, device: torch.device) -> None:
    """Fit, then predict batch after batch."""
    batches = [batch.to(device) for batch in batches_of(questions, TOKENS, OPTIONS)]
    reset(device)
    before, began = allocated(device), time.perf_counter()
    with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
        posterior = fit(structure, model, batches)
        synchronize(device)
        seconds, peak = time.perf_counter() - began, allocated(device, most=True)
        times = []
        for batch in batches[:10]:
            began = time.perf_counter()
            linearised_predictive(model, batch, posterior).probs.tolist()  # waits for the device
            times.append(1000 * (time.perf_counter() - began))
    above = (peak - before) / GB
    print(f"{structure}: fitted in {seconds:.1f} s, peak {peak / GB:.2f} GB, {above:.2f} above the model")
    print(f"{structure}: prediction of {len(batches[0])} questions, ms: {spread(times[1:])}")


def reset(device: torch.device) -> None:
    """Forget the GPU's peak of memory."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def allocated(device: torch.device, most: bool = False) -> int:
    """Bytes on the GPU, now or at most; 0 without one."""
    if device.type != "cuda":
        return 0
    return torch.cuda.max_memory_allocated() if most else torch.cuda.memory_allocated()


def synchronize(device: torch.device) -> None:
    """Wait until the GPU has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()
