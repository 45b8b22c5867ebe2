"""How far a question's answer depends on what stands beside it in the batch, for every kind of arithmetic.

    OMP_NUM_THREADS=1 python benchmarks/alone_or_batched.py --run runs/quickstart

A run is asked the same questions alone and in batches, with its base in every quantisation and under every precision;
the weights on top are the run's. ``8bit, int8 products`` are LLM.int8's own, as a GPU computes them, whose columns of
outliers are chosen over all rows of a batch; on a CPU the package lets 8-bit layers dequantise (``8bit``) instead.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from measure import machine, quiet
from torch import Tensor

from bayeslora.datamodules.synthetic import SyntheticDataModule
from bayeslora.serving.kept import Kept, load
from bayeslora.serving.predictor import Predictor, Prepared

KINDS = {  # name to quantisation, precision, and whether 8-bit layers multiply integers
    "float32": ("none", "32-true", False),
    "bf16-mixed": ("none", "bf16-mixed", False),
    "nf4, float32": ("4bit", "32-true", False),
    "nf4, bf16-mixed": ("4bit", "bf16-mixed", False),
    "8bit, float32": ("8bit", "32-true", False),
    "8bit, bf16-mixed": ("8bit", "bf16-mixed", False),
    "8bit, int8 products": ("8bit", "32-true", True),
}
TOLERANCES = {  # of a probability, as docs/serving.md states them
    "float32": 5e-6,
    "bf16-mixed": 1e-2,
    "nf4, float32": 5e-6,
    "nf4, bf16-mixed": 1e-2,
    "8bit, float32": 5e-6,
    "8bit, bf16-mixed": 1e-2,
    "8bit, int8 products": 1e-3,
}


@dataclass(frozen=True)
class Difference:
    """What batches change in N answers.

    Attributes:
        kind: Of arithmetic.
        largest: Largest difference of a probability.
        usual: The largest difference of a question's probabilities, at the median question.
        again: Largest difference of a probability where the same batches are asked twice.
        choices: Questions whose most probable option is another.
        questions: N.
    """

    kind: str
    largest: float
    usual: float
    again: float
    choices: int
    questions: int


def served(kept: Kept, kind: str, size: int) -> Predictor:
    """The run's predictor in another arithmetic, with batches of ``size``."""
    quantization, precision, integers = KINDS[kind]
    backbone = {**(kept.arguments.get("backbone") or {}), "quantization": quantization}
    arguments = {**kept.arguments, "backbone": backbone}
    predictor = Predictor(replace(kept, arguments=arguments, precision=precision, batch_size=size), "cpu")
    for module in predictor.module.modules():
        if integers and type(module).__name__ == "Linear8bitLt":
            module.training = False
    return predictor


def compare(kept: Kept, kind: str, size: int, count: int) -> Difference:
    """Ask the first questions of the test set alone, and in batches twice."""
    predictor = served(kept, kind, size)
    prepared = predictor.prepare(SyntheticDataModule(ood=[], max_test=count).questions("synthetic"))
    batched, again = (predictor.predict(prepared).probs for _ in range(2))
    alone = _alone(predictor, prepared, batched.shape[1])
    apart = (batched - alone).abs().amax(-1)
    choices = int((batched.argmax(-1) != alone.argmax(-1)).sum())
    return Difference(
        kind, float(apart.max()), float(apart.median()), float((batched - again).abs().max()), choices, len(prepared)
    )


def _alone(predictor: Predictor, prepared: Sequence[Prepared], width: int) -> Tensor:
    parts = (predictor.predict([one]).probs for one in prepared)
    return torch.cat([torch.nn.functional.pad(part, (0, width - part.shape[1])) for part in parts])


def table(rows: Iterable[Difference]) -> Iterator[str]:
    """The comparison in Markdown, line by line."""
    yield "| arithmetic | largest difference | at the median question | same batches again | other choice | tolerance |"
    yield "|---|--:|--:|--:|--:|--:|"
    for row in rows:
        yield (
            f"| {row.kind} | {row.largest:.1e} | {row.usual:.1e} | {row.again:.1e} "
            f"| {row.choices} of {row.questions} | {TOLERANCES[row.kind]:.0e} |"
        )


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table for a run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True, help="a run on the embedded base that was tested")
    parser.add_argument("--questions", type=int, default=300)
    parser.add_argument("--batch-size", type=int, default=32)
    given = parser.parse_args(arguments)
    quiet()
    print(machine(), flush=True)
    kept = load(given.run)
    for line in table(compare(kept, kind, given.batch_size, given.questions) for kind in KINDS):
        print(line, flush=True)


if __name__ == "__main__":
    main()
