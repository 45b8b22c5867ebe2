"""Commands in processes of their own that are forked from one which has imported the package."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from tests.faults.hook import sitecustomize as hook

ROOT = Path(__file__).parents[2]
_SLOW = 600.0  # seconds after which a process hangs


class Process:
    """A command in a process of its own, which is forked; its output goes to ``<folder>/log``.

    Args:
        args: The arguments of the command.
        folder: The folder of the case, whose ``run/`` is watched.
        at: Number of the operation that it is killed before; 0 for none.
    """

    def __init__(self, args: Sequence[str], folder: Path, at: int = 0) -> None:
        self._count = folder / "operations"
        self._count.unlink(missing_ok=True)
        path = os.pathsep.join([str(Path(hook.__file__).parent), str(ROOT), os.environ.get("PYTHONPATH", "")])
        own = {"PYTHONPATH": path, hook.FOLDER: str(folder / "run"), hook.COUNT: str(self._count), hook.AT: str(at)}
        self.pid = os.fork()
        if self.pid == 0:
            os.environ.update(own)
            _become(list(args), folder)

    def wait(self) -> int:
        """Its exit status; a negative one is the signal that ended it."""
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])

    def sent_after(self, seconds: float, ready: Callable[[], object], number: int = signal.SIGKILL) -> int:
        """Send it a signal some seconds after something is ready; its exit status, as :meth:`wait` gives it."""
        while not ready() and os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            time.sleep(0.005)
        time.sleep(seconds)
        os.kill(self.pid, number)
        return self.wait()

    def operations(self) -> int:
        """How many operations on files it has begun."""
        return self._count.stat().st_size if self._count.exists() else 0


def _become(args: list[str], folder: Path) -> None:
    """Turn this process, which was forked, into the command; it does not return."""
    status = 70
    try:
        os.setsid()  # apart from the terminal's signals
        signal.alarm(int(_SLOW))
        log = os.open(folder / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        for stream in (1, 2):
            os.dup2(log, stream)
        hook.install()
        from bayeslora.cli import main

        status = main(args)
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(status)


def import_everything() -> None:
    """What commands import sooner or later, so that a process that is forked finds it."""
    import peft
    import transformers

    import bayeslora.commands.cell
    import bayeslora.commands.ensemble
    import bayeslora.commands.laplace
    import bayeslora.commands.lightning
    import bayeslora.commands.predict
    import bayeslora.grid.local
    import bayeslora.serving.predictor  # noqa: F401

    assert peft.LoraConfig
    assert transformers.LlamaForCausalLM  # both are imported when they are named
