"""Methods and reports that attach to a run: one Callback a file."""

from bayeslora.callbacks.decision import Decision
from bayeslora.callbacks.dynamics import Dynamics
from bayeslora.callbacks.ensemble import Ensemble
from bayeslora.callbacks.laplace import Laplace
from bayeslora.callbacks.posterior import SavedPosteriors
from bayeslora.callbacks.schedule import Schedule
from bayeslora.callbacks.swag import SWAG
from bayeslora.callbacks.temperature import Temperature
from bayeslora.callbacks.tfb import TFB
from bayeslora.callbacks.vocabulary import VocabularyUncertainty

__all__ = [
    "SWAG",
    "TFB",
    "Decision",
    "Dynamics",
    "Ensemble",
    "Laplace",
    "SavedPosteriors",
    "Schedule",
    "Temperature",
    "VocabularyUncertainty",
]
