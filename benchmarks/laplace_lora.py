"""Laplace posteriors of LoRA: fitting and predicting against laplace-torch, and prediction over one forward pass.

    OMP_NUM_THREADS=1 python benchmarks/laplace_lora.py peers        (seconds of both on one model, in turns)
    OMP_NUM_THREADS=1 python benchmarks/laplace_lora.py memory       (peak memory of each in a process of its own)
    OMP_NUM_THREADS=1 python benchmarks/laplace_lora.py predict      (linearised prediction over a forward pass)
    python benchmarks/laplace_lora.py PART --small                   (the same code in seconds; numbers mean nothing)

Models are random Llamas, questions random tokens of one length. laplace-torch is given our model as a function of
token ids, which applies the head to the options' rows alone, so that both sides run the same forward pass. Its ``kron``
stands against our Kronecker factors and our full matrix, its ``diag`` against our diagonal; its own full matrix would
hold P x P numbers, which ours does not form. Times are CPU time of the process; peak memory is the resident size of a
process for each side (VmHWM). This file is not called laplace.py because laplace-torch's package is.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import laplace_peer
import torch
from measure import MIB, machine, quiet, ratios, resident, spread
from sampled_prediction import questions
from torch import Tensor

from bayeslora.curvature.fit import STRUCTURES, Task
from bayeslora.curvature.jacobian import contrast_jacobian, linearised_predictive
from bayeslora.curvature.rows import Network
from bayeslora.models.answer_model import AnswerModel
from bayeslora.models.loading import Backbone, LoRA, load_answer_model
from bayeslora.posteriors.laplace.fit import Prior
from bayeslora.streams import generator
from bayeslora.types import AnswerBatch, GaussianPosterior, Predictive

EVERY_LAYER = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
PEERS = LoRA(r=64, alpha=128, target_modules=EVERY_LAYER)
PREDICTION = LoRA(r=8, alpha=16, target_modules=["q_proj", "v_proj"])
SIZES = {"hidden_size": 640, "intermediate_size": 1728, "num_hidden_layers": 8, "num_attention_heads": 10}
PEER_SIZES = {**SIZES, "num_hidden_layers": 4}
SMALL = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
VOCABULARY = 32000
PRECISION = 100.0
AGAINST = {"kfac": "kron", "ekfac": "kron", "full": "kron", "diag": "diag"}  # ours, and theirs it is compared with
BATCH = 8


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the script: see its first lines."""
    options = parsed(arguments)
    quiet()
    if options.peak_of:
        print(peak_of(options))
        return
    print(machine())
    with tempfile.TemporaryDirectory() as folder:
        sizes = SIZES if options.part == "predict" else PEER_SIZES
        options.model = save_llama(folder, SMALL if options.small else sizes)
        {"peers": peers, "memory": memory, "predict": predict}[options.part](options)


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options of the script."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("peers", "memory", "predict"))
    parser.add_argument("--small", action="store_true", help="a model of no interest, to see the script run")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of each contestant")
    parser.add_argument("--questions", type=int, default=32, help="questions to fit on")
    parser.add_argument("--tokens", type=int, default=48, help="length of a question")
    parser.add_argument("--peak-of", help=argparse.SUPPRESS)
    parser.add_argument("--model", help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


# --- the model and the questions -------------------------------------------------------------------------------------


def save_llama(folder: str, sizes: Mapping[str, int]) -> str:
    """A Llama with random weights on disk."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    base = LlamaForCausalLM(LlamaConfig(vocab_size=VOCABULARY, **sizes))
    layers = sum(p.numel() for p in base.model.layers.parameters())
    print(f"model: random Llama, {layers / 1e6:.0f}M parameters in its {sizes['num_hidden_layers']} layers")
    base.save_pretrained(folder)
    return folder


def with_lora(folder: str, lora: LoRA) -> AnswerModel:
    """The model with LoRA that is not zero."""
    model = load_answer_model(Backbone(folder), lora, seed=0).eval()
    for name, parameter in model.trainable().items():
        if ".lora_B." in name:
            parameter.data.copy_(1e-2 * torch.randn(parameter.shape, generator=generator("B", name)))
    return model


def batches_of(count: int, tokens: int, options: int) -> list[AnswerBatch]:
    """Random questions, a batch at a time."""
    whole = questions(count, tokens, options, torch.device("cpu"))
    parts = []
    for start in range(0, count, BATCH):
        fields = {n: v[start : start + BATCH] for n, v in vars(whole).items() if isinstance(v, Tensor)}
        rows = torch.arange(len(fields["label"]))
        parts.append(replace(whole, **{**fields, "example_of_row": rows, "example_id": rows + start}))
    return parts


# --- what is fitted --------------------------------------------------------------------------------------------------


def fit(structure: str, model: AnswerModel, batches: Sequence[AnswerBatch], share: float = 1.0) -> GaussianPosterior:
    """Our posterior, ready to predict; of the full matrix with a share of its directions."""
    device = batches[0].label.device
    network = Network(
        parameters=dict(model.trainable()),
        logits=lambda batch: model(batch).logits,
        jacobian=partial(contrast_jacobian, model),
        label=lambda batch: batch.label,
        move=lambda batch: batch.to(device),
        model=model,
    )
    rows = sum(len(batch) * (batch.answer_mask.shape[1] - 1) for batch in batches)
    most = share * rows * torch.bfloat16.itemsize * sum(value.numel() for value in network.parameters.values())
    task = Task(network=network, train=batches, validation=None, folder=None, key="benchmark", max_bytes=most)
    return STRUCTURES[structure](task).choose(Prior(precision=PRECISION))[0]


def seconds_of(action: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds of processor time that an action takes, and what it returns."""
    began = time.process_time()
    result = action()
    return time.process_time() - began, result


# --- against laplace-torch -------------------------------------------------------------------------------------------


def peers(options: argparse.Namespace) -> None:
    """Seconds to fit and to predict, in turns."""
    model, batches = with_lora(options.model, PEERS), batches_of(options.questions, options.tokens, 4)
    size = sum(parameter.numel() for parameter in model.trainable().values())
    print(f"{size / 1e6:.2f}M LoRA parameters, {options.questions} questions of {options.tokens} tokens and 4 options")
    print(f"laplace-torch's full matrix would hold {4 * size**2 / 2**40:.2g} TiB")
    fitting: dict[str, list[float]] = {}
    predicting: dict[str, list[float]] = {}
    for _ in range(options.rounds):
        for name, prepare in sides(model, batches).items():
            seconds, predict_batch = seconds_of(prepare)
            fitting.setdefault(name, []).append(seconds)
            predicting.setdefault(name, []).append(seconds_of(partial(predict_batch, batches[0]))[0])
            print(f"  {name}: fitted in {seconds:.1f} s, predicted in {predicting[name][-1]:.2f} s", flush=True)
    for what, seconds_by in (("fit", fitting), (f"prediction of {BATCH} questions", predicting)):
        for name, values in seconds_by.items():
            print(f"{what}, {name}: {spread(values)} s")
        for ours, theirs in AGAINST.items():
            print(ratios(f"{what}, ours {ours} / theirs {theirs}", seconds_by[ours], seconds_by[f"theirs {theirs}"]))


def memory(options: argparse.Namespace) -> None:
    """Peak memory of fitting and predicting, each side in a process of its own."""
    peaks = {}
    for name in (*AGAINST, *(f"theirs {name}" for name in dict.fromkeys(AGAINST.values()))):
        peaks[name] = int(in_a_process(name, options))
        print(f"peak memory above the model, {name}: {peaks[name] / MIB:.0f} MiB", flush=True)
    for ours, theirs in AGAINST.items():
        ratio = peaks[ours] / peaks[f"theirs {theirs}"]
        print(f"peak memory above the model, ours {ours} / theirs {theirs}: {ratio:.2f}x")


def sides(
    model: AnswerModel, batches: Sequence[AnswerBatch]
) -> dict[str, Callable[[], Callable[[AnswerBatch], Tensor]]]:
    """Every contestant: a function that fits and gives back one that predicts."""

    def ours(structure: str) -> Callable[[AnswerBatch], Tensor]:
        """This package's fit."""
        posterior = fit(structure, model, batches)
        return lambda batch: probabilities(model, batch, posterior)

    def theirs(structure: str) -> Callable[[AnswerBatch], Tensor]:
        """The peer's fit."""
        posterior = laplace_peer.fit(structure, model, batches, PRECISION)
        return lambda batch: laplace_peer.predict(posterior, batch)

    contestants: dict[str, Any] = {name: partial(ours, name) for name in AGAINST}
    return contestants | {f"theirs {name}": partial(theirs, name) for name in AGAINST.values()}


def in_a_process(side: str, options: argparse.Namespace) -> str:
    """What a process that runs one side alone prints last."""
    script = [sys.executable, __file__, "memory", "--peak-of", side, "--model", options.model]
    script += ["--questions", str(options.questions), "--tokens", str(options.tokens)]
    return subprocess.run(script, check=True, capture_output=True, text=True).stdout.splitlines()[-1]


def peak_of(options: argparse.Namespace) -> int:
    """Bytes by which this process grows over the model that is loaded, when one side fits and predicts."""
    model, batches = with_lora(options.model, PEERS), batches_of(options.questions, options.tokens, 4)
    contestant = sides(model, batches)[options.peak_of]
    before = resident()
    contestant()(batches[0])
    return resident("VmHWM") - before


# --- over one forward pass -------------------------------------------------------------------------------------------


def predict(options: argparse.Namespace) -> None:
    """Linearised prediction over a forward pass of the same questions, for four options and for two."""
    model = with_lora(options.model, PREDICTION)
    print(f"{options.questions} training questions of {options.tokens} tokens, predicted {BATCH} at a time")
    for count, target in ((4, 5), (2, 3)):
        batches = batches_of(options.questions, options.tokens, count)
        test, posteriors = batches[0], {name: fit(name, model, batches) for name in AGAINST}
        posteriors["full, a quarter of its directions"] = fit("full", model, batches, share=0.25)
        contestants = dict(predictions(model, test, posteriors))
        seconds: dict[str, list[float]] = {name: [] for name in contestants}
        for turn in range(options.rounds + 1):
            for name, contestant in contestants.items():
                elapsed = seconds_of(contestant)[0]
                if turn:  # the first warms up
                    seconds[name].append(elapsed)
        print(f"C = {count}: a forward pass takes {spread([1000 * s for s in seconds['forward']], 0)} ms")
        for name, values in seconds.items():
            if name != "forward":
                print(ratios(f"C = {count}, {name} / forward", values, seconds["forward"], f"<= {target}"))


def predictions(
    model: AnswerModel, batch: AnswerBatch, posteriors: Mapping[str, GaussianPosterior]
) -> Iterator[tuple[str, Callable[[], Any]]]:
    """What is timed: the forward pass, the Jacobian alone, and the whole prediction for every structure."""
    yield "forward", lambda: forward(model, batch)
    yield "Jacobian without the product", lambda: contrast_jacobian(model, batch)
    for name, posterior in posteriors.items():
        yield f"prediction, {name}", partial(probabilities, model, batch, posterior)


def probabilities(model: AnswerModel, batch: AnswerBatch, posterior: GaussianPosterior) -> Tensor:
    """Answer probabilities ``[B, C]`` of the linearised model."""
    return linearised_predictive(model, batch, posterior).probs


@torch.no_grad()
def forward(model: AnswerModel, batch: AnswerBatch) -> Tensor:
    """Answer probabilities ``[B, C]`` of the network itself."""
    return Predictive.from_logits(model(batch).logits[None]).probs


if __name__ == "__main__":
    main()
