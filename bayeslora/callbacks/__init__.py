"""Methods and reports that attach to a run: one Callback a file."""

from bayeslora.callbacks.temperature import Temperature

__all__ = ["Temperature"]
