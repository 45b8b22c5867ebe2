"""The rows of ``baselines.py``: how each is trained, what predicts, and between which values it is tuned."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import lightning as L

from bayeslora.callbacks.laplace import MEMORY, Laplace
from bayeslora.callbacks.schedule import Schedule
from bayeslora.callbacks.swag import SWAG
from bayeslora.callbacks.tfb import TFB

PATIENCE = 5  # validations without a better one, as in method/early_stopping
HALF, CYCLE = 20, 40  # epochs at which SWAG goes back to the best weights, and at which its cycle ends
Tuned = dict[str, float]


@dataclass(frozen=True)
class Training:
    """How a training differs from the quickstart's.

    Attributes:
        methods: Files of ``method/`` that its module is made of.
        options: From the tuned values to options of the module on top.
        stopped: Whether early stopping on the validation NLL ends it.
        callbacks: What takes part in it.
        stop_after: Epochs after which it ends all the same; None for 600 steps.
        found_by: The part that finds for how many steps all labels are trained on, ``early_stopping`` or ``folds``.
    """

    methods: tuple[str, ...] = ("mle",)
    options: Callable[[Tuned], dict[str, Any]] = lambda tuned: {}
    stopped: bool = False
    callbacks: Callable[[Tuned], list[L.Callback]] = lambda tuned: []
    stop_after: int | None = None
    found_by: str | None = None


@dataclass(frozen=True)
class Row:
    """What is tested.

    Attributes:
        training: The training whose weights are tested.
        checkpoint: Which of them: ``last``, or the ``best`` by validation NLL.
        callbacks: What predicts in their place.
        samples: Of the module, where it is not the training's.
    """

    training: str
    checkpoint: str = "last"
    callbacks: Callable[[Tuned], list[L.Callback]] = lambda tuned: []
    samples: int | None = None


def swag(tuned: Tuned, samples: int | None = None) -> list[L.Callback]:
    """SWAG's cycle from the best weights, at half the rate."""
    kind = Schedule("constant")
    return [SWAG(HALF, schedule=kind, start_from_best=True, samples=samples, scale=tuned["swag"])]


def swag_last(tuned: Tuned) -> list[L.Callback]:
    """SWAG as method/swag has it, from the middle of a training that nothing stops."""
    return [SWAG(0.5, schedule=Schedule("constant"), scale=tuned["swag_last"])]


def laplace(mean: str, **options: Any) -> Callable[[Tuned], list[L.Callback]]:
    """Laplace as method/laplace has it, with the precision by validation likelihood."""

    def made(tuned: Tuned) -> list[L.Callback]:
        """The callback; nothing of it is tuned."""
        chosen = {"prior_mean": "initial", "precision": "validation", **options}
        return [Laplace("full", mean=mean, directory=MEMORY, **chosen)]

    return made


TRAININGS = {
    "mle": Training(),
    "early_stopping": Training(stopped=True),
    "refit": Training(found_by="early_stopping"),
    "cross_fit": Training(found_by="folds"),
    "weight_decay": Training(options=lambda t: {"optimisation": {"weight_decay": t["weight_decay"]}}, stopped=True),
    "map": Training(("map",), lambda tuned: {"prior_std": tuned["map"]}, stopped=True),
    "mc_dropout": Training(("mc_dropout",), lambda tuned: {"lora": {"dropout": tuned["mc_dropout"]}}, stopped=True),
    "map_last": Training(("map",), lambda tuned: {"prior_std": tuned["map_last"]}),
    "swag": Training(callbacks=swag, stop_after=CYCLE),
    "swag_last": Training(callbacks=swag_last),
    "ensemble": Training(("ensemble",), lambda tuned: {"patience": PATIENCE}),
    "ensemble_last": Training(("ensemble",)),
    "multiswag": Training(("ensemble",), callbacks=swag, stop_after=CYCLE),
    **{name: Training((name,)) for name in ("blob", "c_lora", "scalabl", "ivon")},
    "ivon_stopped": Training(("ivon",), lambda tuned: {"ess": tuned["ivon_stopped"]}, stopped=True),
    "c_lora_fe": Training(("c_lora", "c_lora_fe")),
}
ROWS = {
    "mle": Row("mle"),
    "early_stopping": Row("early_stopping", "best"),
    "refit": Row("refit"),
    "cross_fit": Row("cross_fit"),
    "weight_decay": Row("weight_decay", "best"),
    "map": Row("map", "best"),
    "mc_dropout": Row("mc_dropout", "best"),
    "swag": Row("swag", callbacks=swag),
    "laplace": Row("early_stopping", "best", laplace("trained")),
    "laplace_refit": Row("early_stopping", "best", laplace("refit")),
    "tfb": Row("early_stopping", "best", lambda tuned: [TFB(tolerance=tuned["tfb"])]),
    "ensemble": Row("ensemble"),
    "multiswag": Row("multiswag", callbacks=lambda tuned: swag(tuned, samples=4)),
    "blob": Row("blob"),
    "blob_mean": Row("blob", samples=0),
    "c_lora": Row("c_lora"),
    "c_lora_fe": Row("c_lora_fe"),
    "scalabl": Row("scalabl"),
    "ivon": Row("ivon"),
    "ivon_stopped": Row("ivon_stopped", "best"),
    "map_last": Row("map_last"),
    "swag_last": Row("swag_last", callbacks=swag_last),
    "laplace_last": Row("mle", callbacks=laplace("trained")),
    "laplace_refit_last": Row("mle", callbacks=laplace("refit")),
    "tfb_last": Row("mle", callbacks=lambda tuned: [TFB(tolerance=tuned["tfb_last"])]),
    "ensemble_last": Row("ensemble_last"),
}
# Of one hyper-parameter each: decay, standard deviation, rate, scale, tolerance, effective sample size; around the last
# weights likewise.
TRIALS = {
    "weight_decay": (1.0, 4.0, 16.0),
    "map": (0.1, 0.2, 0.4),
    "mc_dropout": (0.1, 0.2, 0.4),
    "swag": (0.5, 8.0, 128.0),
    "tfb": (0.003, 0.1, 1.5),
    "ivon_stopped": (100.0, 400.0, 1600.0),
    "map_last": (0.1, 0.2, 0.4),
    "swag_last": (0.5, 8.0, 128.0),
    "tfb_last": (0.003, 0.1, 1.5),
}
AFTER_TRAINING = ("swag", "tfb", "swag_last", "tfb_last")  # whose trials share one training
