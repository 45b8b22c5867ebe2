"""The corruption tool: a file of a run that was damaged is refused by its name in one line, or changes nothing.

    python -m tests.faults.corrupt                          # ten mutations of every kind of file: twenty minutes
    python -m tests.faults.corrupt checkpoint --mutations 3

Six of ten mutations flip a bit, three cut the end off, one appends seven bytes. A command then reads the file; what it
leaves must be what it leaves with the file as it was written, or it must end with status 1 or 2 and one line naming it.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.faults.cases import CASES, SAVED, on
from tests.faults.prepared import Prepared
from tests.faults.process import Process, import_everything


def flip(data: bytes, rng: random.Random) -> bytes:
    """Flip one bit."""
    place = rng.randrange(len(data))
    return data[:place] + bytes([data[place] ^ (1 << rng.randrange(8))]) + data[place + 1 :]


def cut(data: bytes, rng: random.Random) -> bytes:
    """Cut the end off."""
    return data[: rng.randrange(len(data))]


def append(data: bytes, rng: random.Random) -> bytes:
    """Append what does not belong there."""
    return data + rng.randbytes(7)


MUTATIONS = (flip, cut, flip, append, flip, cut, flip, flip, cut, flip)
Arguments = Callable[[Path], list[str]]
_PREDICTIONS = ("test/*.parquet", "test/metrics.json")


@dataclass(frozen=True)
class Kind:
    """A kind of file.

    Attributes:
        file: The pattern of its files within ``run/``.
        reader: Arguments of a command whose results depend on it.
        result: Patterns of the files that the command leaves.
        of: Name of the run that has it, in ``RUNS``.
    """

    file: str
    reader: Arguments
    result: tuple[str, ...] = _PREDICTIONS
    of: str = "tested"


def _resumed(folder: Path) -> list[str]:
    checkpoint = folder / "run" / "checkpoints" / "last.ckpt"
    return ["test", f"--ckpt_path={checkpoint}", "--overwrite"]


def _with_adapter(folder: Path) -> list[str]:
    adapter = [f"--model.backbone.adapter={folder / 'run' / 'posterior'}", "--ckpt_path=adapter"]
    return [*on("test", "lora", "--overwrite")(folder), *adapter]


def _compare(folder: Path) -> list[str]:
    return ["compare", str(folder / "run"), "--out", str(folder / "run" / "compared"), "--overwrite"]


def _dynamics(folder: Path) -> list[str]:
    return ["dynamics", str(folder / "run"), "--overwrite"]


_TEST, _FIT = on("test", "tested", "--overwrite"), on("fit", "lora")
_CELL, _ASK = CASES["cell"], CASES["predict"]
_CELLS = ("own/*/seed-0/test/*.parquet",)
RUNS: dict[str, tuple[Arguments, ...]] = {
    "tested": (_FIT, on("test", "tested")),
    "swag": (on("fit", "swag"), on("test", "swag")),
    "laplace": (_FIT, on("laplace", "laplace")),
    "dynamics": (on("fit", "dynamics"),),
    "cell": (_CELL.command,),
}
KINDS = {
    "checkpoint": Kind("checkpoints/last.ckpt", _TEST),
    "fit-config": Kind("fit-config.yaml", _resumed),
    "run": Kind("run.json", _compare, ("compared/*.csv",)),
    "temperature": Kind("posterior/temperature.json", _TEST),
    "decision": Kind("test/decision.json", _compare, ("compared/*.csv",)),
    "predictions": Kind("test/predictions.parquet", _compare, ("compared/*.csv",)),
    "adapter": Kind("posterior/adapter_*", _with_adapter),
    "posterior": Kind("posterior/*", on("test", SAVED, "--overwrite"), of="swag"),
    "serving": Kind("serving/*.*", _ASK.command, _ASK.result),
    "serving-posterior": Kind("serving/posterior/*", _ASK.command, _ASK.result, "swag"),
    "laplace": Kind("laplace/*/*.*", on("laplace", "laplace", "--overwrite"), of="laplace"),
    "laplace-rows": Kind("laplace/*/*/*.*", on("laplace", "laplace", "--overwrite"), of="laplace"),
    "dynamics": Kind("dynamics/epoch-*", _dynamics, ("dynamics/analysis/*.csv",), "dynamics"),
    "cell": Kind("own/*/seed-0/*.json", _CELL.command, _CELLS, "cell"),
    "cell-checkpoint": Kind("own/mle/seed-0/checkpoints/last.ckpt", _CELL.command, _CELLS, "cell"),
    "cell-predictions": Kind("own/temperature/seed-0/test/predictions.parquet", _CELL.command, _CELLS, "cell"),
}


class Damages(Prepared):
    """Mutations of a kind of file.

    Args:
        kind: The kind.
        folder: An empty folder to work in.
    """

    def __init__(self, kind: Kind, folder: Path) -> None:
        super().__init__(folder, RUNS[kind.of])
        self.kind = kind
        self.reset()
        self.targets = self.files(kind.file)
        assert self.targets, f"there is no {kind.file}"
        status, said = self._read()
        assert status == 0, said
        self.whole = self._content()

    def outcome(self, number: int, seed: int) -> str:
        """What comes of a mutation: ``refused`` or ``equal``, or else a fault in words."""
        self.reset()
        rng, mutation = random.Random(f"{number} {seed}"), MUTATIONS[number % len(MUTATIONS)]
        file = self.run / self.targets[number % len(self.targets)]
        file.write_bytes(mutation(file.read_bytes(), rng))
        status, said = self._read()
        where = f"{mutation.__name__} of {file.relative_to(self.run)}, seed {number} {seed}"
        if "Traceback" in said:
            return f"a traceback: {where}"
        if status == 0:
            return "equal" if self._content() == self.whole else f"a wrong result without a word: {where}"
        lines = [line for line in said.splitlines() if line.startswith("bayeslora: error:")]
        if status not in (1, 2) or len(lines) != 1:
            return f"status {status}, {len(lines)} lines: {where}"
        named = file.name in lines[0] or (file.parent.name in lines[0] and "damaged" in lines[0])
        return "refused" if named else f"its file is not named: {where}: {lines[0]}"

    def reset(self) -> None:
        """Put the run back, without what a reading leaves: it is no result of the next."""
        super().reset()
        for name in self.files(*self.kind.result):
            if not (self.run / name).match(self.kind.file):
                (self.run / name).unlink()

    def _read(self) -> tuple[int, str]:
        log = self.folder / "log"
        log.unlink(missing_ok=True)
        status = Process(self.kind.reader(self.folder), self.folder).wait()
        return status, log.read_text(errors="replace")

    def _content(self) -> dict[str, str]:
        return {name: self.checksum(name) for name in self.files(*self.kind.result)}


def damages(name: str, folder: Path, count: int, seed: int) -> list[str]:
    """Mutate a kind of file so many times; print and return the faults.

    Args:
        name: Of the kind in ``KINDS``.
        folder: An empty folder to work in.
        count: Number of mutations, which go through the files of the kind in turn.
        seed: Of the mutations.
    """
    kind = Damages(KINDS[name], folder)
    outcomes = Counter(kind.outcome(number, seed) for number in range(count))
    refused, equal = outcomes.pop("refused", 0), outcomes.pop("equal", 0)
    print(f"{name}: {count} mutations of {len(kind.targets)} files: {refused} refused by name, {equal} without effect")
    for fault in outcomes:
        print(f"  {fault}")
    sys.stdout.flush()
    return list(outcomes)


def main(args: Sequence[str] | None = None) -> int:
    """Run the tool; the exit status is 1 where there was a fault."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.corrupt", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("kind", nargs="*", help=f"what to damage: {', '.join(KINDS)} (default: all)")
    parser.add_argument("--mutations", type=int, default=10, help="of each kind (10)")
    parser.add_argument("--folder", type=Path, help="to work in and to leave everything in, for a look at a failure")
    parser.add_argument("--seed", type=int, default=0, help="of the mutations")
    given = parser.parse_args(args)
    import_everything()
    faults = []
    with tempfile.TemporaryDirectory() as temporary:
        for name in given.kind or KINDS:
            faults += damages(name, (given.folder or Path(temporary)) / name, given.mutations, given.seed)
    return int(bool(faults))


if __name__ == "__main__":
    sys.exit(main())
