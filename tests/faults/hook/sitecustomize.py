"""Counts the operations that a process and its children do to the files of a folder, and kills it before one of them.

Python imports a module of this name when it starts, wherever its folder is on the path; ``tests/faults/kill.py`` sets
the variables. What libraries in C++ and Rust write is seen when Python renames it to its place.
"""

import os
import signal
import sys

FOLDER, COUNT, AT = "BAYESLORA_FAULTS_FOLDER", "BAYESLORA_FAULTS_COUNT", "BAYESLORA_FAULTS_AT"
# Where the arguments of an event have the descriptor of the folder that its path starts from.
_DIRECTORY = {
    "os.remove": 1,
    "os.mkdir": 2,
    "os.rmdir": 1,
    "os.rename": 2,
}
_OTHERS = ("os.link", "os.symlink", "os.truncate")


def install() -> None:
    """Count every operation as a byte of the file ``COUNT``; SIGKILL stands in the place of number ``AT``."""
    folder, at = os.path.realpath(os.environ[FOLDER]), int(os.environ.get(AT, 0))
    count = os.open(os.environ[COUNT], os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def note(event: str, args: tuple) -> None:
        if event != "open" and event not in _DIRECTORY and event not in _OTHERS:
            return
        if event == "open" and not args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            return
        if not isinstance(args[0], str | bytes) or not _path(event, args).startswith(folder + os.sep):
            return
        os.write(count, b".")
        if at and os.fstat(count).st_size == at:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(note)


def _path(event: str, args: tuple) -> str:
    path = os.fsdecode(args[0])
    descriptor = args[_DIRECTORY[event]] if event in _DIRECTORY else -1
    beside = os.readlink(f"/proc/self/fd/{descriptor}") if descriptor >= 0 else os.getcwd()
    return os.path.normpath(os.path.join(beside, path))


if FOLDER in os.environ:
    install()
