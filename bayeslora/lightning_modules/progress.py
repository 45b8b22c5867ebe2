"""What a progress bar is told, and when."""

from __future__ import annotations

from collections.abc import Iterable, Sized
from typing import TypeVar

import lightning as L

Item = TypeVar("Item")


def bar_is_shown(trainer: L.Trainer | None) -> bool:
    """Whether a progress bar shows numbers in this process.

    Lightning reads a number that is logged with ``prog_bar`` on the host in every step, whether a bar is shown or not
    (`Lightning #21232 <https://github.com/Lightning-AI/pytorch-lightning/issues/21232>`_), and a GPU's host waits for
    it. What is logged in every step says ``prog_bar=bar_is_shown(self._trainer)`` instead.

    Args:
        trainer: Whose bar it is; None where a module is stepped without one.

    Returns:
        False without a bar, and where it is switched off, as on all processes but the first.
    """
    bar = None if trainer is None else trainer.progress_bar_callback
    return bar is not None and getattr(bar, "is_enabled", True)


def tracked(trainer: L.Trainer, items: Iterable[Item], what: str) -> Iterable[Item]:
    """The items one by one, with a bar for them where a progress bar is shown at all.

    Args:
        trainer: Whose bar it is.
        items: What is gone through.
        what: What the bar says.
    """
    from rich.progress import track

    total = len(items) if isinstance(items, Sized) else None
    return track(items, what, total=total, disable=not bar_is_shown(trainer))
