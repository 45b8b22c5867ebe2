"""S posterior samples fanned out, one after another, and linearised prediction, each over one forward pass, in turns.

    python benchmarks/sampled_prediction.py                  (a random Llama of 100M parameters on the CPU)
    python benchmarks/sampled_prediction.py --device cuda    (a random Llama-2-7B in nf4, nothing is downloaded)
    python benchmarks/sampled_prediction.py --small          (the same code in seconds; its numbers mean nothing)

One after another is what peers do: copy a sample into the weights, run a forward pass, S times; it has the same
read-out here. Linearised is one forward and C - 1 backward passes, the product with a diagonal covariance and the
quadrature. Prompts are random tokens of one length. Times are wall-clock on a GPU; on a CPU they are
the process's CPU time, which other processes disturb less: give it one thread (OMP_NUM_THREADS=1).
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from measure import begin, spread
from torch import Tensor

from bayeslora.curvature.jacobian import linearised_predictive
from bayeslora.models.answer_model import AnswerModel
from bayeslora.models.loading import Backbone, LoRA, load_answer_model, wrap
from bayeslora.streams import generator
from bayeslora.types import AnswerBatch, Predictive, Samples

BATCHES = (1, 4, 16)
SAMPLES = 10
DEVIATION = 1e-3  # of every weight under the posterior
SIZES = {"hidden_size": 640, "intermediate_size": 1728, "num_hidden_layers": 12, "num_attention_heads": 10}
SMALL = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
VOCABULARY = 32000
LORA = LoRA(r=8, alpha=16, target_modules=["q_proj", "v_proj"])
FORWARD = "one forward, ms"
Contestants = dict[str, Callable[[], Predictive]]


class Diagonal:
    """A Gaussian with independent weights around given ones, on their device."""

    family = "diagonal"

    def __init__(self, mean: Mapping[str, Tensor]) -> None:
        self._mean = {name: value.detach().clone() for name, value in mean.items()}
        self._variance = {name: torch.full_like(value, DEVIATION**2) for name, value in self._mean.items()}

    def mean(self) -> dict[str, Tensor]:
        """The weights."""
        return self._mean

    def sample(self, n: int) -> dict[str, Tensor]:
        """``n`` draws of every weight."""
        draws = {}
        for name, mean in self._mean.items():
            noise = torch.randn(n, *mean.shape, generator=generator("sample", name)).to(mean.device)
            draws[name] = mean + self._variance[name].sqrt() * noise
        return draws

    def logit_covariance(self, jacobian: Mapping[str, Tensor]) -> Tensor:
        """``J diag(v) J^T [B, C-1, C-1]``."""
        products = []
        for name, own in jacobian.items():
            rows = (own * self._variance[name].sqrt()).flatten(2)
            products.append(rows @ rows.mT)
        return torch.stack(products).sum(0)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the script: see its first lines."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5, help="rounds, after one at the smallest batch to warm up")
    parser.add_argument("--tokens", type=int, default=64, help="length of a prompt")
    options = begin(parser, arguments)
    table: list[str] = []
    for name, model in models(options.device, options.small):
        measure(model, BATCHES[0], 1, options)  # warms up
        for size in BATCHES:
            seconds = measure(model, size, options.rounds, options)
            table = table or [f"| base | batch | {' | '.join(seconds)} |", "|---" * 7 + "|"]
            table.append(f"| {name} | {size} | {' | '.join(cells(seconds))} |")
            print(table[-1], flush=True)
    print(f"\nS = {SAMPLES}, {options.tokens} tokens, {options.rounds} rounds: median [min, max] over one forward\n")
    print("\n".join(table))


# --- the models and the questions ------------------------------------------------------------------------------------


def models(device: torch.device, small: bool) -> Iterator[tuple[str, AnswerModel]]:
    """The bases by name, with LoRA that is not zero."""
    for name, model in on_gpu(device, small) if device.type == "cuda" else on_cpu(small):
        for parameter, value in model.trainable().items():
            if ".lora_B." in parameter:
                noise = torch.randn(value.shape, generator=generator("B", parameter))
                value.data.copy_(DEVIATION * noise)
        yield name, model.eval()


def on_gpu(device: torch.device, small: bool) -> Iterator[tuple[str, AnswerModel]]:
    """A 4-bit Llama of 7 billion random parameters."""
    from gpu_7b import SIZES as LARGE
    from gpu_7b import nf4_llama

    base = nf4_llama(SMALL if small else LARGE, device)
    yield "nf4", wrap(base, Backbone("random", quantization="4bit"), LORA, seed=0).to(device)


def on_cpu(small: bool) -> Iterator[tuple[str, AnswerModel]]:
    """A small random Llama, in float32 and quantised."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    base = LlamaForCausalLM(LlamaConfig(vocab_size=VOCABULARY, **(SMALL if small else SIZES)))
    print(f"model: {sum(p.numel() for p in base.parameters()) / 1e6:.0f}M parameters, LoRA r=8 on q and v")
    with tempfile.TemporaryDirectory() as folder:
        base.save_pretrained(folder)
        yield "fp32", load_answer_model(Backbone(folder), LORA, seed=0)
        yield "nf4", load_answer_model(Backbone(folder, quantization="4bit"), LORA, seed=0)


def questions(size: int, tokens: int, options: int, device: torch.device) -> AnswerBatch:
    """Random prompts of one length."""
    rows = torch.arange(size)
    return AnswerBatch(
        input_ids=torch.randint(10, VOCABULARY, (size, tokens), generator=generator("questions")),
        attention_mask=torch.ones(size, tokens, dtype=torch.long),
        example_of_row=rows,
        option_of_row=torch.zeros_like(rows),
        answer_ids=torch.arange(3, 3 + options).expand(size, -1),
        answer_mask=torch.ones(size, options, dtype=torch.bool),
        label=torch.zeros_like(rows),
        example_id=rows,
        dataset="random",
    ).to(device)


# --- what is measured ------------------------------------------------------------------------------------------------


def measure(model: AnswerModel, size: int, rounds: int, options: Any) -> dict[str, list[float]]:
    """Seconds of every contestant in every round, in turns."""
    device = options.device
    rivals = contestants(model, *(questions(size, options.tokens, count, device) for count in (4, 2)))
    seconds: dict[str, list[float]] = {rival: [] for rival in rivals}
    for _ in range(rounds):
        for rival, predict in rivals.items():
            seconds[rival].append(timed(predict, device))
    return seconds


def cells(seconds: dict[str, list[float]]) -> list[str]:
    """Milliseconds of one forward pass, and the ratios of the others to it."""
    one = seconds[FORWARD]
    ratios = [
        [a / b for a, b in zip(values, one, strict=True)] for rival, values in seconds.items() if rival != FORWARD
    ]
    return [spread([1000 * s for s in one], 0), *map(spread, ratios)]


def contestants(model: AnswerModel, four: AnswerBatch, two: AnswerBatch) -> Contestants:
    """The predictions to compare, of questions with four options and, linearised, with two."""
    posterior = Diagonal(model.trainable())
    samples = Samples(posterior.sample(SAMPLES))
    return {
        FORWARD: lambda: forward(model, four),
        "fanned out": lambda: fanned_out(model, four, samples),
        "one after another": lambda: one_after_another(model, four, samples),
        "linearised, C = 4": lambda: linearised_predictive(model, four, posterior),
        "linearised, C = 2": lambda: linearised_predictive(model, two, posterior),
    }


@torch.no_grad()
def forward(model: AnswerModel, batch: AnswerBatch) -> Predictive:
    """One forward pass at the mean."""
    return Predictive.from_logits(model(batch).logits[None])


@torch.no_grad()
def fanned_out(model: AnswerModel, batch: AnswerBatch, samples: Samples) -> Predictive:
    """All samples in one pass."""
    return Predictive.from_logits(model(batch, samples).logits)


@torch.no_grad()
def one_after_another(model: AnswerModel, batch: AnswerBatch, samples: Samples) -> Predictive:
    """The weights of each sample written in their place, a pass each."""
    parameters, logits = model.trainable(), []
    own = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    for index in range(len(samples)):
        fill(parameters, {name: values[index] for name, values in samples.weights.items()})
        logits.append(model(batch).logits)
    fill(parameters, own)
    return Predictive.from_logits(torch.stack(logits))


def fill(parameters: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
    """Write values into parameters."""
    for name, value in values.items():
        parameters[name].copy_(value)


def timed(predict: Callable[[], Predictive], device: torch.device) -> float:
    """Seconds until the averaged probabilities are there."""
    on_gpu = device.type == "cuda"
    clock = time.perf_counter if on_gpu else time.process_time
    began = clock()
    with torch.autocast(device.type, torch.bfloat16, enabled=on_gpu):
        predict().probs.tolist()  # waits for the device
    return clock() - began


if __name__ == "__main__":
    main()
