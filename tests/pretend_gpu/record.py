"""What the pretend device notes: operations that were dispatched to it, and places where the host waits for it."""

from __future__ import annotations

import sys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

ROOT = f"{Path(__file__).resolve().parents[2]}/"
OWN = ("bayeslora/", "benchmarks/")


@dataclass
class Record:
    """Counts since the recording began.

    Attributes:
        operations: Operations on the device by name, views left out. One of them may be none or several kernels on a
            real device, so these are dispatched operations, not launches.
        waits: Times the host waits for the device, by kind, operation and the line that causes it. Kinds: ``value`` (a
            number is read: ``item``, ``if tensor``), ``shape`` (a result whose size depends on values: ``nonzero``, a
            mask as index, ``unique``), ``to_cpu`` and ``to_gpu`` (blocking copies; one into pinned memory, or out of
            it, with ``non_blocking`` does not wait), ``linalg`` (factorisations, which check their result), ``index``
            (an index on the CPU into a tensor on the device).
    """

    operations: Counter[str] = field(default_factory=Counter)
    waits: Counter[tuple[str, str, str]] = field(default_factory=Counter)

    @property
    def number_of_operations(self) -> int:
        """All operations."""
        return sum(self.operations.values())

    @property
    def number_of_waits(self) -> int:
        """All waits."""
        return sum(self.waits.values())

    def lines(self) -> list[str]:
        """The waits, most frequent first, a line each."""
        return [
            f"{number:5}x {kind:7} {operation:28} {line}"
            for (kind, operation, line), number in self.waits.most_common()
        ]


def line_of_the_project() -> str:
    """The innermost line of this project on the stack and its caller, or of the library that runs without it."""
    frame, own, library = sys._getframe(1), list[str](), ""
    while frame is not None:
        name = frame.f_code.co_filename
        here = name.removeprefix(ROOT)
        if here != name and here.startswith(OWN):
            own.append(f"{here}:{frame.f_lineno}")
        elif not library and "/torch/" not in name and "pretend_gpu" not in name:
            library = f"[{'/'.join(name.split('/')[-3:])}:{frame.f_lineno}]"
        frame = frame.f_back  # type: ignore[assignment]
    return " < ".join(own[:2]) or library
