"""Methods and reports that attach to a run: one Callback a file."""

from bayeslora.callbacks.dynamics import Dynamics
from bayeslora.callbacks.posterior import SavedPosteriors
from bayeslora.callbacks.schedule import Schedule
from bayeslora.callbacks.swag import SWAG
from bayeslora.callbacks.temperature import Temperature

__all__ = ["SWAG", "Dynamics", "SavedPosteriors", "Schedule", "Temperature"]
