"""Dispatched operations per decoder layer and waits per step, of the package's methods over plain peft's.

    OMP_NUM_THREADS=1 python benchmarks/launches.py      (on a pretend GPU; without g++ on the CPU, where nobody waits)

A random Llama of tiny width, not quantised, in bfloat16, goes through the real trainer in bf16-mixed. What a layer
costs is the difference between a model of three layers and one of a single layer, so that embedding, head, loss and
optimiser fall out. Views are left out. A dispatched operation may be none or several kernels on a real GPU, so these
are no launches; they say what the host has to do for a layer, which no fast GPU takes away. The counts are exact and
repeat. Peft's side is its own forward pass and ``backward()`` under autocast, with a dropout of zero.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from tests.pretend_gpu import device as pretend  # its import leaves torch alone

if "torch" not in sys.modules and pretend.missing() is None:
    pretend.activate()

import torch
from contest import loader_of
from lightning.pytorch import Callback, Trainer
from measure import machine, quiet
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from bayeslora.datamodules.encode import Encoded
from bayeslora.lightning_modules import multiple_choice
from bayeslora.lightning_modules.blob import BLoBModule
from bayeslora.lightning_modules.c_lora import CLoRAModule
from bayeslora.lightning_modules.ensemble import LoRAEnsemble
from bayeslora.lightning_modules.ivon import IVONModule
from bayeslora.lightning_modules.lora import LoRAModule
from bayeslora.lightning_modules.multiple_choice import MultipleChoiceModule
from bayeslora.lightning_modules.scalabl import ScalaBLModule
from bayeslora.models.loading import Backbone, LoRA, wrap
from bayeslora.types import Samples

PRETEND = "tests.pretend_gpu.patches" in sys.modules  # it has been activated
DEVICE = "cuda" if PRETEND else "cpu"
LAYERS = (1, 3)
MEMBERS, SAMPLES, BATCH, TOKENS = 5, 10, 4, 8
WIDTHS = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2, "vocab_size": 64}
SITES = {
    "q, v": ["q_proj", "v_proj"],
    "all": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
}
MOST_WAITS = {"fit": 3, "test": 5}


@dataclass
class Counts:
    """What was dispatched on the way there and back, and how often the host waited, in one step."""

    forward: float = 0
    backward: float = 0
    waits: int = 0


@dataclass(frozen=True)
class Method:
    """What is counted: a module, its stage, and the largest ratio to peft's operations that is aimed at."""

    make: Callable[..., MultipleChoiceModule]
    stage: str
    target: float | None
    dropout: float = 0.0


class Bank(LoRAModule):
    """Plain LoRA that is tested with as many weight sets as an ensemble has members."""

    def test_samples(self) -> Samples:
        """Copies of the weights: what they are does not change what is dispatched."""
        return Samples(weights={name: p.detach().expand(MEMBERS, *p.shape) for name, p in self.trainable().items()})


METHODS = {
    "LoRA": Method(LoRAModule, "fit", None),
    "keyed dropout": Method(LoRAModule, "fit", 1.3, dropout=0.1),
    "MC dropout, ten in one pass": Method(lambda *a: LoRAModule(*a, samples=SAMPLES), "test", 1.3, dropout=0.1),
    "BLoB": Method(BLoBModule, "fit", 1.8),
    "ScalaBL": Method(ScalaBLModule, "fit", 1.3),
    "IVON": Method(IVONModule, "fit", 1.4),
    "C-LoRA": Method(CLoRAModule, "fit", 2.2),
    "ensemble of 5": Method(lambda *a: LoRAEnsemble(*a, members=MEMBERS, share_data_order=True), "fit", 1.1),
    "bank of 5 weight sets": Method(Bank, "test", 1.1),
}


class Operations(TorchDispatchMode):
    """Counts on the CPU what the pretend device counts, without its waits."""

    number_of_operations = number_of_waits = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.number_of_operations += not function.is_view
        return function(*args, **(kwargs or {}))


def recording() -> AbstractContextManager[Any]:
    """A block in which operations and waits are counted."""
    return pretend.recording() if PRETEND else Operations()


class Watch(Callback):
    """Counts the last step of a run, from the end of the step before."""

    def __init__(self) -> None:
        self.counts = Counts()
        self._open: dict[str, tuple[Any, Any]] = {}

    def _begin(self, name: str) -> None:
        block = recording()
        self._open[name] = (block, block.__enter__())

    def _end(self, name: str) -> Any:
        block, record = self._open.pop(name)
        block.__exit__(None, None, None)
        return record

    def on_train_batch_start(self, *_: Any) -> None:
        """The way there begins."""
        self._begin("forward")

    def on_before_backward(self, *_: Any) -> None:
        """It ends, and the way back begins."""
        self.counts.forward = self._end("forward").number_of_operations
        self._begin("backward")

    def on_after_backward(self, *_: Any) -> None:
        """The way back ends."""
        self.counts.backward = self._end("backward").number_of_operations

    def on_train_batch_end(self, *_: Any) -> None:
        """A step ends and the next begins, with its batch's way to the device."""
        if "step" in self._open:
            self.counts.waits = self._end("step").number_of_waits
        self._begin("step")

    def on_train_end(self, *_: Any) -> None:
        """What comes after the last step is not counted."""
        self._end("step")

    def on_test_batch_start(self, *_: Any) -> None:
        """There is no way back."""
        self._begin("forward")

    def on_test_batch_end(self, *_: Any) -> None:
        """As for training."""
        self.counts.forward = self._end("forward").number_of_operations
        self.on_train_batch_end()

    on_test_end = on_train_end


def llama(layers: int) -> nn.Module:
    """A random Llama on the CPU."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(num_hidden_layers=layers, use_cache=False, **WIDTHS)
    with torch.device("cpu"):
        return LlamaForCausalLM(config).to(torch.bfloat16).requires_grad_(False)


def questions() -> list[Encoded]:
    """Questions of one length: no two steps differ."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randint(10, WIDTHS["vocab_size"], (3 * BATCH * MEMBERS, TOKENS), generator=generator, device="cpu")
    return [Encoded((row,), None, (3, 4, 5, 6), index % 4) for index, row in enumerate(rows.tolist())]


@contextmanager
def on(base: nn.Module) -> Iterator[None]:
    """Modules are made around this base."""

    def load(backbone: Backbone, lora: LoRA, seed: int, *_: Any, **__: Any) -> Any:
        """The base that is there, in the place of one from disk."""
        return wrap(base, backbone, lora, 0)

    with patch.object(multiple_choice, "load_answer_model", load):
        yield


def ours(method: Method, sites: list[str], layers: int) -> Counts:
    """The last of three steps in the real trainer."""
    watch = Watch()
    module = method.make(Backbone("random"), LoRA(r=8, dropout=method.dropout, target_modules=sites))
    trainer = Trainer(
        accelerator="gpu" if PRETEND else "cpu",
        devices=1,
        precision="bf16-mixed",
        max_steps=3,
        limit_test_batches=3,
        limit_val_batches=0,
        callbacks=[watch],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        inference_mode=False,  # as on the command line
    )
    with on(llama(layers)):
        data = loader_of(questions(), BATCH)
        _ = trainer.fit(module, data) if method.stage == "fit" else trainer.test(module, data, verbose=False)
    return watch.counts


def peft(sites: list[str], layers: int) -> Counts:
    """A pass there and back of peft alone."""
    network = get_peft_model(llama(layers), LoraConfig(r=8, target_modules=sites, task_type="CAUSAL_LM")).to(DEVICE)
    batch = next(iter(loader_of(questions(), BATCH))).to(DEVICE)
    with torch.autocast(DEVICE, torch.bfloat16):
        with recording() as there:
            logits = network(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
        loss = logits.float().sum()
    with recording() as back:
        loss.backward()
    return Counts(there.number_of_operations, back.number_of_operations)


def a_layer(count: Callable[[int], Counts]) -> Counts:
    """What one more layer costs; waits are those of the deeper model's whole step."""
    few, many = (count(layers) for layers in LAYERS)
    added = LAYERS[1] - LAYERS[0]
    return Counts((many.forward - few.forward) / added, (many.backward - few.backward) / added, many.waits)


def main() -> None:
    """Run the script: see its first lines."""
    quiet()
    print(machine())
    print("on the pretend GPU\n" if PRETEND else "on the CPU: there is no compiler for the pretend GPU\n")
    print("| | sites | forward | backward | over peft's | target | waits a step | target |")
    print("|---|---|---|---|---|---|---|---|")
    for place, sites in SITES.items():
        plain = a_layer(lambda layers, sites=sites: peft(sites, layers))  # type: ignore[misc]
        print(f"| peft | {place} | {plain.forward:g} | {plain.backward:g} | | | | |", flush=True)
        for name, method in METHODS.items():
            own = a_layer(lambda layers, m=method, sites=sites: ours(m, sites, layers))  # type: ignore[misc]
            print(f"| {name} | {place} | {row(method, own, plain, place)} |", flush=True)


def row(method: Method, own: Counts, plain: Counts, place: str) -> str:
    """Cells of a line; a test has no way back, and what is aimed at holds for all linear layers."""
    fit = method.stage == "fit"
    ratio = (own.forward + own.backward) / (plain.forward + plain.backward) if fit else own.forward / plain.forward
    target = "" if method.target is None or place != "all" else verdict(round(ratio, 2), method.target)
    waits = [str(own.waits), verdict(own.waits, MOST_WAITS[method.stage])] if PRETEND else ["", ""]
    back = f"{own.backward:g}" if fit else ""
    return " | ".join([f"{own.forward:g}", back, f"{ratio:.2f}", target, *waits])


def verdict(value: float, most: float) -> str:
    """The most that is aimed at, and whether it is met."""
    return f"{most:g}: {'met' if value <= most else 'missed'}"


if __name__ == "__main__":
    main()
