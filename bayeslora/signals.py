"""SIGINT and SIGTERM end a command in order: training saves its state first, everything else ends at once."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from types import FrameType

HANDLED = (signal.SIGINT, signal.SIGTERM)


class Stopped(BaseException):
    """A signal asked the command to end. No ``Exception``, so that nothing on the way takes it for a failure.

    Args:
        signum: Which signal.
        saved: The checkpoint from which a fit goes on, where there is one.
    """

    def __init__(self, signum: int, saved: str | None = None) -> None:
        super().__init__(signum)
        self.signum, self.saved = signum, saved

    @property
    def name(self) -> str:
        """The signal's name, such as ``SIGTERM``."""
        return signal.Signals(self.signum).name

    @property
    def status(self) -> int:
        """The exit status that shells give a process which this signal ended, 130 for SIGINT, 143 for SIGTERM."""
        return 128 + self.signum


class Stopping:
    """What the two signals do: end the command at once or, while they are deferred, wait to be looked at.

    Attributes:
        asked: The signal that has come and waits, or None.
        deferred: Whether signals wait. A second one ends the command all the same.
    """

    def __init__(self) -> None:
        self.asked: int | None = None
        self.deferred = False

    def handle(self, signum: int, frame: FrameType | None) -> None:
        """The handler of both signals.

        Args:
            signum: Number of the signal.
            frame: Where the program was; not used.
        """
        if not self.deferred or self.asked is not None:
            raise Stopped(signum)
        self.asked = signum

    def install(self) -> None:
        """Take over both signals; once more where a library has put its own handler in front."""
        if threading.current_thread() is threading.main_thread():
            for number in HANDLED:
                signal.signal(number, self.handle)


_current: ContextVar[Stopping | None] = ContextVar("stopping", default=None)


def current_handler() -> Stopping | None:
    """What handles the signals of the command that runs; None where no command does, as in a script of one's own."""
    return _current.get()


@contextmanager
def signals_stop_the_command() -> Iterator[None]:
    """Both signals raise :class:`Stopped` within the block, and do what they did before after it."""
    own, main = Stopping(), threading.current_thread() is threading.main_thread()
    before = {number: signal.getsignal(number) for number in HANDLED} if main else {}
    own.install()
    token = _current.set(own)
    try:
        yield
    finally:
        _current.reset(token)
        for number, handler in before.items():
            signal.signal(number, handler)
