"""What a refit adds to a fit of Laplace's Gaussian: seconds and peak memory on 640 questions, with and without one.

    OMP_NUM_THREADS=1 python benchmarks/laplace_refit.py

The embedded base with LoRA on all of its linear layers, and questions of the embedded benchmark with four options, so
that there are 1,920 rows. Each side collects the rows, chooses the precision by evidence and makes the posterior, in a
process of its own; rounds alternate. Times are CPU time of the process, peak memory is what its resident size grows by
(VmHWM). Choosing among priors afterwards costs the second column alone.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from functools import partial

import torch
from measure import MIB, machine, quiet, ratios, resident, spread

from bayeslora.curvature.fit import Task, fit_full
from bayeslora.curvature.jacobian import contrast_jacobian
from bayeslora.curvature.rows import Network
from bayeslora.datamodules.synthetic import SyntheticDataModule
from bayeslora.models.loading import Backbone, LoRA, load_answer_model
from bayeslora.posteriors.laplace.fit import MEANS, Prior

TARGETS = {"seconds of fit and choice": "<= 1.3", "peak MiB": "<= 1.3"}
STEPS = 60  # of training, so that the weights say something about the questions


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the script: see its first lines."""
    options = parsed(arguments)
    quiet()
    if options.side:
        print(json.dumps(measured(options)))
        return
    print(machine())
    found: dict[str, list[dict[str, float]]] = {mean: [] for mean in MEANS}
    for _ in range(options.rounds):
        for mean in MEANS:
            found[mean].append(in_a_process(mean, options))
            print(f"  {mean}: {found[mean][-1]}", flush=True)
    for what in ("seconds of fit and choice", "seconds of the choice", "peak MiB"):
        for mean in MEANS:
            print(f"{what}, {mean}: {spread([one[what] for one in found[mean]])}")
        sides = ([one[what] for one in found[mean]] for mean in ("refit", "trained"))
        print(ratios(f"{what}, refit / trained", *sides, TARGETS.get(what, "")))


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options of the script."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--questions", type=int, default=640)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--side", choices=MEANS, help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def in_a_process(mean: str, options: argparse.Namespace) -> dict[str, float]:
    """What a process that runs one side alone prints last."""
    script = [sys.executable, __file__, "--side", mean, "--questions", str(options.questions)]
    found: dict[str, float] = json.loads(
        subprocess.run(script, check=True, capture_output=True, text=True).stdout.splitlines()[-1]
    )
    return found


def measured(options: argparse.Namespace) -> dict[str, float]:
    """Seconds and memory of one side."""
    # four fifths of the labels are trained on
    data = SyntheticDataModule(labels=options.questions * 5 // 4, batch_size=16, eval_batch_size=16, seed=0)
    model = load_answer_model(Backbone("embedded"), LoRA(r=8, alpha=16), seed=0)
    data.setup("fit")
    batches = list(data.train_eval_dataloader())
    train(model, batches)
    network = Network(
        dict(model.trainable()),
        lambda batch: model(batch).logits,
        partial(contrast_jacobian, model),
        lambda batch: batch.label,
        lambda batch: batch,
        model,
    )
    before, began = resident(), time.process_time()
    fit = fit_full(Task(network=network, train=batches, validation=None, folder=None, key="benchmark"))
    collected = time.process_time()
    report = fit.choose(Prior(posterior_mean=options.side))[2]
    ended = time.process_time()
    return {
        "questions": float(report["questions"]),
        "rows": float(report["m"]),
        "seconds of fit and choice": ended - began,
        "seconds of the choice": ended - collected,
        "peak MiB": (resident("VmHWM") - before) / MIB,
    }


def train(model: torch.nn.Module, batches: Sequence[object]) -> None:
    """A few steps of maximum likelihood."""
    optimizer = torch.optim.AdamW(model.trainable().values(), lr=1e-3)  # type: ignore[operator]
    for step in range(STEPS):
        batch = batches[step % len(batches)]
        loss = torch.nn.functional.cross_entropy(model(batch).logits, batch.label)  # type: ignore[attr-defined]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()


if __name__ == "__main__":
    main()
