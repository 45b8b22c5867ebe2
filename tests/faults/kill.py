"""The kill tool: a command that is killed with SIGKILL anywhere, and given again, ends as if it had never been killed.

    python -m tests.faults.kill                                    # 20 kills of every command: an hour
    python -m tests.faults.kill fit-swag --random 2 --operations 3

A trial kills the command at a random moment, or in the place of one of its operations on the run folder's files (opened
for writing, renamed, removed, made), gives it again, and compares what it leaves with an undisturbed run's,
byte for byte. Processes are forked from one that has imported the package, so that moments fall on work.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tests.faults.cases import CASES, Case
from tests.faults.prepared import Prepared
from tests.faults.process import Process, import_everything

_PARTS = ("state_dict", "optimizer_states", "lr_schedulers", "bayeslora", "global_step", "epoch")  # of a checkpoint


@dataclass(frozen=True)
class Trial:
    """One kill: where, whether the command went on from a checkpoint, what differs in the end, what rubbish is left."""

    where: str
    resumed: bool
    differing: tuple[str, ...]
    rubbish: tuple[str, ...]


class Trials(Prepared):
    """Kills of one command.

    Args:
        case: The command.
        folder: An empty folder to work in.
    """

    def __init__(self, case: Case, folder: Path) -> None:
        super().__init__(folder, case.before)
        self.case = case
        self.reset()
        begun = time.time()
        self.count = self.finish(case.command(folder))
        self.seconds = time.time() - begun
        self.whole = self._content()

    def at_random(self, rng: random.Random, late: bool = False) -> Trial:
        """Kill it at a random moment of the time that it takes.

        Args:
            rng: Draws the moment.
            late: Only once there is a checkpoint.
        """
        ready = self._checkpoints if late else lambda: True
        while True:
            self.reset()
            moment = rng.uniform(0, self.seconds / 2 if late else self.seconds)
            if Process(self.case.command(self.folder), self.folder).sent_after(moment, ready) < 0:
                return self._go_on(f"{moment:.2f} s after {'its first checkpoint' if late else 'its start'}")

    def by_signal(self, rng: random.Random, number: signal.Signals) -> Trial:
        """Ask it to end at a random moment, which it does in order: its status says so, and a line how to go on."""
        while True:
            self.reset()
            (self.folder / "log").unlink()
            moment = rng.uniform(0, self.seconds)
            process = Process(self.case.command(self.folder), self.folder)
            status = process.sent_after(moment, lambda: True, number)
            if status not in (0, -number):  # it had not ended yet, and Python had begun
                break
        said = (self.folder / "log").read_text(errors="replace")
        lines = [line for line in said.splitlines() if line.startswith(f"bayeslora: stopped by {number.name}; ")]
        in_order = status == 128 + number and len(lines) == 1 and "Traceback" not in said
        trial = self._go_on(f"{number.name} after {moment:.2f} s")
        wrong = () if in_order else (f"status {status} and {len(lines)} lines: {said[-500:]!r}",)
        return replace(trial, differing=(*wrong, *trial.differing))

    def before_operation(self, number: int) -> Trial:
        """Kill it, or the process of its own that comes to it, before its operation of a number."""
        self.reset()
        process = Process(self.case.command(self.folder), self.folder, at=number)
        status = process.wait()
        assert status != 0, f"operation {number} was never reached: {process.operations()} were done"
        return self._go_on(f"before operation {number} of {self.count}")

    def _go_on(self, where: str) -> Trial:
        self._wait_for_orphans()
        saved = self._checkpoints()
        named = [f"--ckpt_path={'last' if 'last' in saved else saved[0]}"] if saved and self.case.asks else []
        self.finish([*self.case.command(self.folder), *named])
        found = self._content()
        differing = sorted(name for name in found.keys() | self.whole.keys() if found.get(name) != self.whole.get(name))
        rubbish = [str(path.relative_to(self.run)) for path in self.run.rglob(".*") if path.suffix in (".tmp", ".old")]
        return Trial(where, bool(saved), tuple(differing), tuple(rubbish))

    def _checkpoints(self) -> list[str]:
        """Names of the checkpoints to go on from."""
        return [path.stem for path in self.run.glob(self.case.checkpoint or "none")]

    def _wait_for_orphans(self) -> None:
        """Processes of a benchmark that was killed end by themselves: they are asked to when it dies."""
        if self.case.spawns:
            time.sleep(1)

    def _content(self) -> dict[str, str]:
        """Checksums of the results; of a checkpoint those of its parts. A process of its own opens them."""
        names = self.files(*self.case.result)
        assert names, "it left nothing"
        plain = [name for name in names if not name.endswith(".ckpt")]
        content = {name: self.checksum(name) for name in plain}
        for name in sorted({*names} - {*plain}):
            content[name] = _in_a_process(_parts_of_checkpoint, self.run / name)
        return content


def _parts_of_checkpoint(path: Path) -> str:
    import torch

    checkpoint = torch.load(path, weights_only=True)
    held = {name: checkpoint.get(name) for name in _PARTS}
    held["callbacks"] = {
        name: state for name, state in checkpoint["callbacks"].items() if "Checkpoint" not in name.split("{")[0]
    }  # those of checkpoints: after a kill `best` may be chosen among one validation fewer
    return hashlib.sha256(_plain(held).encode()).hexdigest()


def _plain(value: object) -> str:
    """A text that says everything of nested values, tensors to the last bit."""
    import torch

    if isinstance(value, torch.Tensor):
        data = value.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes() if value.numel() else b""
        return f"{value.dtype}{tuple(value.shape)}{hashlib.sha256(data).hexdigest()}"
    if isinstance(value, dict):
        return "{" + ",".join(f"{key!r}:{_plain(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ",".join(map(_plain, value)) + "]"
    return repr(value)


def _in_a_process(function, *args) -> str:  # type: ignore[no-untyped-def]
    """The text that a function gives, called in a forked process: the one that forks stays without threads."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.write(writing, function(*args).encode())
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        text = pipe.read()
    os.waitpid(pid, 0)
    assert text, f"{args} could not be read"
    return text


def trials(name: str, folder: Path, at_random: int, before_operations: int, signals: int, seed: int) -> list[Trial]:
    """Kill a command so many times; print what came of it.

    Args:
        name: Of the command in ``CASES``.
        folder: An empty folder to work in.
        at_random: Number of kills at random moments.
        before_operations: Number of kills before operations, which are spread over all of them.
        signals: Number of signals at random moments, SIGTERM and SIGINT in turn.
        seed: Of the moments.
    """
    kills, rng = Trials(CASES[name], folder), random.Random(f"{name} {seed}")
    done = [kills.at_random(rng, late=bool(kills.case.checkpoint and index % 2)) for index in range(at_random)]
    step = max(1.0, kills.count / max(1, before_operations))
    numbers = sorted({1 + int(step * i + rng.random() * step) for i in range(min(before_operations, kills.count))})
    done += [kills.before_operation(min(number, kills.count)) for number in numbers]
    done += [kills.by_signal(rng, (signal.SIGTERM, signal.SIGINT)[index % 2]) for index in range(signals)]
    wrong = [trial for trial in done if trial.differing]
    rubbish = sum(bool(trial.rubbish) for trial in done)
    resumed = sum(trial.resumed for trial in done)
    print(
        f"{name}: {at_random} kills at random moments of {kills.seconds:.1f} s, {len(numbers)} before operations on "
        f"files (of {kills.count}), {signals} signals; {resumed} of {len(done)} went on from a checkpoint; "
        f"{len(done) - len(wrong)} of {len(done)} equal; rubbish left by {rubbish}",
        flush=True,
    )
    for trial in done:
        if trial.differing or trial.rubbish:
            print(f"  {trial.where}: differing {list(trial.differing)}, left {list(trial.rubbish)}", flush=True)
    return done


def main(args: Sequence[str] | None = None) -> int:
    """Run the tool; the exit status is 1 where a result differs or rubbish is left."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.kill", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("case", nargs="*", help=f"what to kill: {', '.join(CASES)} (default: all)")
    parser.add_argument("--random", type=int, default=10, help="kills at random moments (10)")
    parser.add_argument("--operations", type=int, default=10, help="kills before operations on files (10)")
    parser.add_argument("--signals", type=int, default=4, help="SIGTERM and SIGINT at random moments (4)")
    parser.add_argument("--folder", type=Path, help="to work in and to leave everything in, for a look at a failure")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    given = parser.parse_args(args)
    import_everything()
    failed = False
    with tempfile.TemporaryDirectory() as temporary:
        for name in given.case or CASES:
            done = trials(
                name,
                (given.folder or Path(temporary)) / name,
                given.random,
                given.operations,
                given.signals,
                given.seed,
            )
            failed |= any(trial.differing or trial.rubbish for trial in done)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
