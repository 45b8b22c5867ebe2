"""Whether a process's memory stays flat while it trains: 5,000 steps of every method, each in a process of its own.

    python benchmarks/steady_memory.py                      # hours on a busy machine
    python benchmarks/steady_memory.py lora blob --steps 1000

Resident memory is read fifty times; the growth is that of the median over the last fifth of a run against the median
over the second fifth, when caches have been filled.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

READINGS = 50


def modules() -> dict[str, Callable[[], tuple[Any, list[Any]]]]:
    """The methods that train: a module and its callbacks."""
    from bayeslora import SWAG, BLoBModule, CLoRAModule, IVONModule, LoRAEnsemble, LoRAModule, ScalaBLModule
    from bayeslora.lightning_modules.optimisation import Optimisation
    from bayeslora.models.loading import Backbone, LoRA

    base: dict[str, Any] = {"backbone": Backbone("embedded"), "seed": 0}

    def own(kind: Any, *callbacks: Any, **options: Any) -> Callable[[], tuple[Any, list[Any]]]:
        """How a method's module and callbacks are made."""
        return lambda: (kind(**base, lora=LoRA(r=2, dropout=0.1), **options), list(callbacks))

    return {
        "lora": own(LoRAModule),
        "swag": own(LoRAModule, SWAG(start=1, every=1, unit="step")),
        "blob": own(BLoBModule),
        "c_lora": own(CLoRAModule),
        "scalabl": own(ScalaBLModule),
        "ivon": own(IVONModule, optimisation=Optimisation(learning_rate=0.1)),
        "ensemble": own(LoRAEnsemble, members=3),
    }


def resident() -> int:
    """Bytes of this process that are in memory now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def train(method: str, steps: int) -> list[int]:
    """Train and read the memory fifty times.

    Args:
        method: Its name in :func:`modules`.
        steps: Number of optimiser steps.
    """
    import lightning as L

    from bayeslora import SyntheticDataModule

    class Readings(L.Callback):
        """Reads the memory at equal distances."""

        def __init__(self) -> None:
            self.found: list[int] = []

        def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
            """Read the process's memory at even distances."""
            if trainer.global_step >= (len(self.found) + 1) * steps / READINGS:
                self.found.append(resident())

    readings = Readings()
    module, callbacks = modules()[method]()
    with tempfile.TemporaryDirectory() as folder:
        trainer = L.Trainer(
            max_steps=steps, accelerator="cpu", devices=1, logger=False, default_root_dir=folder, limit_val_batches=0,
            enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
            callbacks=[readings, *callbacks],
        )  # fmt: skip
        trainer.fit(module, datamodule=SyntheticDataModule(labels=200, batch_size=4))
    return readings.found


def growth(found: Sequence[int]) -> float:
    """The median over the last fifth against that over the second fifth, less one.

    Args:
        found: Readings at equal distances.
    """
    fifth = len(found) // 5
    return median(found[-fifth:]) / median(found[fifth : 2 * fifth]) - 1


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a line a method."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("methods", nargs="*", help="of the list that is printed without any (all)")
    parser.add_argument("--steps", type=int, default=5000, help="optimiser steps (5000)")
    parser.add_argument("--here", action="store_true", help="in this process, which is what each method's own does")
    given = parser.parse_args(arguments)
    for method in given.methods or modules():
        if not given.here:
            subprocess.run([sys.executable, __file__, method, "--steps", str(given.steps), "--here"], check=True)
            continue
        found = train(method, given.steps)
        print(
            f"| {method} | {given.steps} | {median(found[10:20]) / 2**20:.1f} MiB | {max(found) / 2**20:.1f} MiB | "
            f"{100 * growth(found):+.2f} % |",
            flush=True,
        )


if __name__ == "__main__":
    main()
