"""Compiles ``guard.cpp`` against the installed torch and loads it, which has to happen before torch is imported."""

from __future__ import annotations

import ctypes
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

COMPILER = "g++"
SOURCE = Path(__file__).parent / "guard.cpp"


def missing() -> str | None:
    """Why the pretend device cannot be had on this machine; None where it can."""
    return None if shutil.which(COMPILER) else f"no {COMPILER} to compile the pretend GPU's device guard with"


def load() -> None:
    """Load the guard into this process.

    Raises:
        RuntimeError: torch is there already: it asks for hooks once, when it is imported.
    """
    if "torch" in sys.modules:
        raise RuntimeError("the pretend GPU must be loaded before torch is imported; use a process of its own")
    ctypes.CDLL(str(_compiled()), ctypes.RTLD_GLOBAL)


def _compiled() -> Path:
    """The library for this torch and this source, compiled where it is not there yet (some seconds)."""
    origin = importlib.util.find_spec("torch").origin  # type: ignore[union-attr]  # finds, does not import
    torch = Path(origin).parent  # type: ignore[arg-type]
    stamp = f"{os.getuid()}-{torch.stat().st_mtime_ns}-{SOURCE.stat().st_mtime_ns}"
    library = Path(tempfile.gettempdir()) / f"pretend-gpu-{stamp}.so"
    if not library.exists():
        own = library.with_suffix(f".{os.getpid()}.so")
        include = [f"-I{torch}/include", f"-I{torch}/include/torch/csrc/api/include"]
        link = [f"-L{torch}/lib", f"-Wl,-rpath,{torch}/lib", "-ltorch_cpu", "-lc10"]
        options = ["-std=c++20", "-O1", "-fPIC", "-shared", "-w"]
        subprocess.run([COMPILER, *options, *include, str(SOURCE), *link, "-o", str(own)], check=True)
        own.replace(library)  # another process may compile it too
    return library
