"""The two kinds of failure that a user meets as one line instead of a traceback."""

from __future__ import annotations

import errno
from collections.abc import Iterable

# How torch (by the size of what was to be written) and other libraries say that nothing more could be written.
_FULL_DISK = ("unexpected pos", "iostream error", "No space left")


class UsageError(ValueError):
    """What was asked for cannot be done: the message says what was given, what is allowed, what to do.

    The command line prints it as one line and exits with status 2; nothing has been written or overwritten.

    Example:
        >>> from bayeslora import LoRA, UsageError
        >>> try:
        ...     LoRA(r=0)
        ... except UsageError as error:
        ...     print(error)
        lora.r is 0; allowed: 1 or more
    """


class RunError(RuntimeError):
    """A run that started properly had to stop (NaN in the loss, say). The command line exits with status 1.

    Example:
        >>> from bayeslora import RunError
        >>> try:
        ...     raise RunError("the loss is not finite; lower the learning rate")
        ... except RunError as error:
        ...     print(error)
        the loss is not finite; lower the learning rate
    """


def require(what: str, value: object, holds: bool, allowed: str) -> None:
    """Refuse a value for which a condition does not hold; ``allowed`` says in words which values are.

    Args:
        what: What the value is called in the message.
        value: What was given.
        holds: Whether the value is allowed.
        allowed: The values that are allowed.

    Raises:
        UsageError: the condition does not hold.
    """
    if not holds:
        raise UsageError(f"{what} is {value!r}; allowed: {allowed}")


def require_choice(what: str, value: object, allowed: Iterable[object]) -> None:
    """Refuse a value that is none of those allowed.

    Args:
        what: What the value is called in the message.
        value: What was given.
        allowed: The values that are allowed.

    Raises:
        UsageError: it is none of them.
    """
    names = list(allowed)
    require(what, value, value in names, ", ".join(map(str, names)))


def in_one_line(error: Exception) -> str:
    """What a library's error means to a user, in one line.

    Args:
        error: Any exception that is none of this package's own.
    """
    text = " ".join(str(error).split()) or type(error).__name__
    if (isinstance(error, OSError) and error.errno == errno.ENOSPC) or any(said in text for said in _FULL_DISK):
        return f"the disk is full, or was when a file was written ({text}); what had been written before is whole"
    if isinstance(error, ModuleNotFoundError):
        return f"{text}; install the package it belongs to, or leave out what needs it"
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    if type(error).__name__ == "OutOfMemoryError":
        return f"out of memory on the device ({text}); give smaller batches, a quantised base, or fewer samples a pass"
    if type(error).__name__ == "MisconfigurationException":
        return text
    return f"{type(error).__name__}: {text}"
