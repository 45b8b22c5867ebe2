"""A file of questions in flat memory: peak memory and speed of ``bayeslora predict --run`` over the length of the file.

    OMP_NUM_THREADS=1 python benchmarks/predict_memory.py --run runs/quickstart

Every file is answered by a process of its own, and its peak is what the kernel has counted (VmHWM). Questions are the
embedded benchmark's test set over and over, each with an id of its own; ``--ending parquet`` reads and writes parquet.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path

SIZES = (1_000, 10_000, 100_000)
MIB = 2**20
ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Answered:
    """What one process did.

    Attributes:
        questions: How many it answered.
        seconds: From the call to the last answer, the loading of the model included.
        peak: Most resident memory, in bytes.
    """

    questions: int
    seconds: float
    peak: int


def write_questions(file: Path, count: int) -> None:
    """A file of that many questions, as JSON lines or parquet."""
    from bayeslora.datamodules.synthetic import SyntheticDataModule

    asked = SyntheticDataModule(ood=[]).questions("synthetic")
    rows = [
        {"id": str(place), "question": one.question, "options": list(one.options)}
        for place, one in enumerate(islice(cycle(asked), count))
    ]
    if file.suffix == ".parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(pa.Table.from_pylist(rows), file)
        return
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def answer(run: Path, questions: Path, out: Path) -> Answered:
    """Answer a file in a fresh process.

    Raises:
        CalledProcessError: the process failed.
    """
    command = [sys.executable, __file__, "--run", str(run), "--answer", str(questions), str(out)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, cwd=ROOT)
    return Answered(**json.loads(done.stdout.splitlines()[-1]))


def answer_here(run: Path, questions: Path, out: Path) -> None:
    """Answer a file in this process and print what that took."""
    from measure import quiet, resident

    from bayeslora.commands.predict import predict

    quiet()
    began = time.perf_counter()
    answered, _ = predict(run, questions, out, "cpu")
    print(
        json.dumps({"questions": answered, "seconds": time.perf_counter() - began, "peak": resident("VmHWM")}),
        flush=True,
    )


def table(rows: Sequence[Answered]) -> str:
    """The processes in Markdown; memory beside the smallest file's."""
    lines = [
        "| questions | seconds | questions a second | peak, MiB | above the smallest file's, MiB |",
        "|--:|--:|--:|--:|--:|",
    ]
    for row in rows:
        above = (row.peak - rows[0].peak) / MIB
        lines.append(
            f"| {row.questions} | {row.seconds:.0f} | {row.questions / row.seconds:.0f} "
            f"| {row.peak / MIB:.0f} | {above:+.0f} |"
        )
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table for a run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True, help="a run on the embedded base that was tested")
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, help="questions in each file")
    parser.add_argument("--ending", default="jsonl", choices=("jsonl", "parquet"))
    parser.add_argument("--answer", type=Path, nargs=2, metavar=("FILE", "OUT"), help="one file, in this process")
    given = parser.parse_args(arguments)
    if given.answer:
        answer_here(given.run, *given.answer)
        return
    from measure import machine

    print(machine(), flush=True)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for size in sorted(given.sizes):
            questions, out = (Path(folder) / f"{name}-{size}.{given.ending}" for name in ("asked", "answers"))
            write_questions(questions, size)
            rows.append(answer(given.run.resolve(), questions, out))
    print(table(rows))


if __name__ == "__main__":
    main()
