"""The two kinds of failure that a user meets as one line instead of a traceback."""

from __future__ import annotations

from collections.abc import Iterable


class UsageError(ValueError):
    """What was asked for cannot be done: the message says what was given, what is allowed, what to do.

    The command line prints it as one line and exits with status 2; nothing has been written or overwritten.
    """


class RunError(RuntimeError):
    """A run that started properly had to stop (NaN in the loss, say). The command line exits with status 1."""


def require(what: str, value: object, holds: bool, allowed: str) -> None:
    """Refuse a value for which a condition does not hold; ``allowed`` says in words which values are.

    Raises:
        UsageError: the condition does not hold.
    """
    if not holds:
        raise UsageError(f"{what} is {value!r}; allowed: {allowed}")


def require_choice(what: str, value: object, allowed: Iterable[object]) -> None:
    """Refuse a value that is none of those allowed.

    Raises:
        UsageError: it is none of them.
    """
    names = list(allowed)
    require(what, value, value in names, ", ".join(map(str, names)))
