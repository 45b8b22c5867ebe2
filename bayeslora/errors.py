"""The two kinds of failure that a user meets as one line instead of a traceback."""


class UsageError(ValueError):
    """What was asked for cannot be done: the message says what was given, what is allowed, what to do.

    The command line prints it as one line and exits with status 2; nothing has been written or overwritten.
    """


class RunError(RuntimeError):
    """A run that started properly had to stop (NaN in the loss, say). The command line exits with status 1."""
