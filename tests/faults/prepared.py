"""A folder with a run that commands have made, put back as often as a fault is to meet it."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

from tests.faults.cases import write_configurations
from tests.faults.process import Process


class Prepared:
    """What some commands leave in ``run/`` of a folder; ``data/`` and the configurations stand beside it.

    Args:
        folder: An empty folder to work in.
        commands: Arguments of the commands, from the folder; there may be none.
    """

    def __init__(self, folder: Path, commands: Iterable[Callable[[Path], list[str]]]) -> None:
        self.folder, self.run = folder, folder / "run"
        folder.mkdir(parents=True)
        write_configurations(folder)
        for arguments in commands:
            self.finish(arguments(folder))
        if self.run.exists():
            self.run.rename(folder / "before")

    def reset(self) -> None:
        """Put the run back."""
        shutil.rmtree(self.run, ignore_errors=True)
        if (self.folder / "before").exists():
            shutil.copytree(self.folder / "before", self.run)

    def finish(self, args: list[str]) -> int:
        """Run a command, which has to succeed; how many operations on the run's files it did."""
        process = Process(args, self.folder)
        if status := process.wait():
            tail = (self.folder / "log").read_text(errors="replace")[-2000:]
            raise SystemExit(f"{' '.join(args)}: status {status}; the end of {self.folder / 'log'}:\n{tail}")
        return process.operations()

    def files(self, *patterns: str) -> list[str]:
        """The run's files of some patterns, in order."""
        found = {path for pattern in patterns for path in self.run.glob(pattern) if path.is_file()}
        return sorted(str(path.relative_to(self.run)) for path in found)

    def checksum(self, name: str) -> str:
        """Of a file of the run."""
        return hashlib.sha256((self.run / name).read_bytes()).hexdigest()
