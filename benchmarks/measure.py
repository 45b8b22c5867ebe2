"""Rounds of two contestants in turns, and how their numbers are printed."""

from __future__ import annotations

import argparse
import logging
import os
import platform
import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback
from torch import Tensor

PACKAGES = ("torch", "transformers", "peft", "lightning", "bitsandbytes")
MIB = 2**20


@dataclass(frozen=True)
class Round:
    """What one contestant did in its turn.

    Attributes:
        steps: Optimiser steps, or passes.
        examples: Questions in them.
        tokens: Their tokens, without padding.
        cells: Their tokens, with padding.
        seconds: Wall-clock time.
        peak: Most device memory that was allocated, in bytes; 0 without a GPU.
    """

    steps: int
    examples: int
    tokens: int
    cells: int
    seconds: float
    peak: int


class Meter:
    """A stop watch that counts what went by; the device has finished when it is read.

    Args:
        device: Where the work runs.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def start(self) -> None:
        """Begin a round."""
        self.steps = self.examples = self.cells = 0
        self.tokens: Tensor | int = 0
        if self.device.type == "cuda":
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
        self.began = time.perf_counter()

    def add(self, attention_mask: Tensor) -> None:
        """Count one batch, without waiting for the device."""
        self.steps += 1
        self.examples += len(attention_mask)
        self.cells += attention_mask.numel()
        self.tokens = self.tokens + attention_mask.sum()

    def stop(self) -> Round:
        """End the round."""
        peak = 0
        if self.device.type == "cuda":
            torch.cuda.synchronize()
            peak = torch.cuda.max_memory_allocated()
        seconds = time.perf_counter() - self.began
        return Round(self.steps, self.examples, int(self.tokens), self.cells, seconds, peak)


class Alternate(Callback):
    """Times a trainer's steps in rounds, with a round of an opponent after each.

    The trainer's clock runs from the end of the opponent's round, so that all it does between steps is counted.

    Args:
        opponent: Takes a number of steps and returns its round.
        rounds: Number of steps of each round; the first warms up and is not kept.
        device: Where both run.
    """

    def __init__(self, opponent: Callable[[int], Round], rounds: Sequence[int], device: torch.device) -> None:
        self.opponent, self.rounds, self.meter = opponent, rounds, Meter(device)
        self.all_ours: list[Round] = []
        self.all_theirs: list[Round] = []

    @property
    def kept(self) -> tuple[list[Round], list[Round]]:
        """The trainer's and the opponent's rounds after the first."""
        return self.all_ours[1:], self.all_theirs[1:]

    def on_train_start(self, *_: Any) -> None:
        """Start the clock."""
        self.meter.start()

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Count a step; at the end of a round, give the opponent its turn."""
        self.meter.add(batch.attention_mask)
        steps = self.rounds[len(self.all_ours)]
        if self.meter.steps < steps:
            return
        self.all_ours.append(self.meter.stop())
        self.all_theirs.append(self.opponent(steps))
        self.meter.start()


def ratios(name: str, ours: Sequence[float], theirs: Sequence[float], target: str = "") -> str:
    """A line with the median and range of ``ours / theirs``, paired by round."""
    pairs = [a / b for a, b in zip(ours, theirs, strict=True)]
    goal = f"  (target {target})" if target else ""
    return f"{name}: {statistics.median(pairs):.2f}x [{min(pairs):.2f}, {max(pairs):.2f}], {len(pairs)} rounds{goal}"


def spread(values: Sequence[float], digits: int = 2) -> str:
    """Median and range."""
    return f"{statistics.median(values):.{digits}f} [{min(values):.{digits}f}, {max(values):.{digits}f}]"


def resident(what: str = "VmRSS") -> int:
    """Resident bytes of this process, now or at most (``VmHWM``); ru_maxrss would start at its parent's size."""
    fields = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
    return int(fields[what].split()[0]) * 1024


def machine() -> str:
    """Processor, accelerator, load and versions, in lines."""
    info = Path("/proc/cpuinfo")
    names = [line.partition(":")[2].strip() for line in info.read_text().splitlines() if "model name" in line]
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    versions = ", ".join(f"{name} {installed(name)}" for name in PACKAGES)
    return (
        f"machine: {names[0] if names else platform.machine()}, {os.cpu_count()} cores, "
        f"{torch.get_num_threads()} torch threads, load {os.getloadavg()[0]:.1f}; {device}\n"
        f"python {platform.python_version()}, {versions}"
    )


def installed(package: str) -> str:
    """The version of a package, which need not be there: not every benchmark quantises."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def begin(parser: argparse.ArgumentParser, arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Options of a benchmark with ``--device`` and ``--small`` among them; what it says from here on are figures."""
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--small", action="store_true", help="a tiny model, to see the script run")
    options = parser.parse_args(arguments)
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("there is no GPU here; run it where there is one, or without --device")
    options.device = torch.device(options.device)
    quiet()
    print(machine(), flush=True)
    return options


def quiet() -> None:
    """Leave the output to the figures."""
    import transformers

    warnings.filterwarnings("ignore")
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    for name in ("lightning.pytorch", "lightning.pytorch.utilities.rank_zero", "lightning.fabric", "bitsandbytes"):
        logging.getLogger(name).setLevel(logging.ERROR)
