"""Methods and reports that attach to a run: one Callback a file."""

from bayeslora.callbacks.dynamics import Dynamics
from bayeslora.callbacks.laplace import Laplace
from bayeslora.callbacks.posterior import SavedPosteriors
from bayeslora.callbacks.schedule import Schedule
from bayeslora.callbacks.swag import SWAG
from bayeslora.callbacks.temperature import Temperature
from bayeslora.callbacks.tfb import TFB

__all__ = ["SWAG", "TFB", "Dynamics", "Laplace", "SavedPosteriors", "Schedule", "Temperature"]
