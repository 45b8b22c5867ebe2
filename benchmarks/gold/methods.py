"""The methods of the package on the weights that the gold posterior is over, trained and asked as anybody would."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from gold.distance import mixed
from gold.setting import PRIOR_STD, SCALING, SHIFTED, Problem, Setting
from study import configuration, keep, overlays, run
from torch import Tensor

from bayeslora.posteriors.state import load_posterior
from bayeslora.results.prediction_file import read_predictions
from bayeslora.streams import generator

LEARNING_RATE = 1e-3
PRECISION = 1 / PRIOR_STD**2
SAME, OTHER, NONE = "the gold's", "another", "none stated"  # priors
Prediction = tuple[Tensor, Tensor]  # probabilities [N, C] and mutual information [N]


@dataclass(frozen=True)
class Method:
    """How a row is made.

    Attributes:
        overlays: Files of ``method/`` on top of the quickstart's configuration; with none, nothing is trained.
        options: Options on top of those.
        prior: Whether its prior is the gold's.
        trained: The row whose run it is fitted to; None trains its own.
        posterior: Folder of the run that holds a law over weights, which is drawn from; None where there is none, and
            the package's own test predicts.
        draws: How many draws.
        tested: Options of that test; with a law over weights, of the test that finds it.
    """

    overlays: tuple[str, ...]
    options: tuple[str, ...] = ()
    prior: str = NONE
    trained: str | None = None
    posterior: str | None = "posterior"
    draws: int = 200
    tested: tuple[str, ...] = ()


def laplace(*options: str, prior: str) -> Method:
    """Laplace around the maximum likelihood run, with these options."""
    return Method(
        ("mle", "laplace"), tuple(f"--trainer.callbacks.{o}" for o in options), prior, trained="mle", posterior=None
    )


AT_PRIOR = (f"precision={PRECISION}", "prior_mean=zero")
MANY = ("--model.samples=200",)
AT_STD = f"--model.prior_std={PRIOR_STD}"
ADDED = ("base", "bbb_wide")  # after the first results: described, and left out of what was planned
METHODS = {
    "base": Method((), draws=1),
    "mle": Method(("mle",), draws=1),
    "map": Method(("map",), (AT_STD,), SAME, draws=1),
    "mc_dropout": Method(("mc_dropout",), posterior=None, tested=MANY),
    "ensemble": Method(("ensemble",), draws=5),
    "swag": Method(("swag",)),
    "multiswag": Method(("ensemble", "swag")),
    "laplace": laplace(prior=OTHER),
    "laplace_prior": laplace(*AT_PRIOR, prior=SAME),
    "laplace_refit_prior": laplace(*AT_PRIOR, "mean=refit", prior=SAME),
    "tfb": Method(("mle", "tfb"), trained="mle", posterior="posterior/tfb"),
    "blob": Method(("blob",), (AT_STD,), OTHER),
    "bbb": Method(("bbb",), (AT_STD,), SAME),
    "bbb_wide": Method(("bbb",), (AT_STD, "--model.std_learning_rate=0.02"), SAME),
    "c_lora": Method(("c_lora",), posterior=None, tested=MANY),
    "scalabl": Method(("scalabl",), prior=OTHER),
    "ivon": Method(("ivon",), ("--model.optimisation.learning_rate=1.0",), SAME),
}


def predictions(name: str, setting: Setting, given: Problem, root: Path) -> dict[str, Prediction]:
    """What a method predicts for the test sets of a setting, trained as far as it is not.

    Args:
        name: The row.
        setting: Of which gold.
        given: Its model and questions.
        root: Where the runs of the setting are.

    Raises:
        ValueError: a run on other questions than the gold's.
    """
    method, folder = METHODS[name], root / name
    if not method.overlays:
        return sampled({name: value[None] for name, value in given.target.initial.items()}, given)
    common = options_of(method, setting)
    if method.trained is None:
        if not (folder / "posterior").exists():
            run("fit", *common, "--trainer.limit_val_batches=0", f"--trainer.default_root_dir={folder}", "--overwrite")
    else:
        predictions(method.trained, setting, given, root)
        if not (folder / "test").exists():
            keep(root / method.trained, folder)
    if (method.trained or method.posterior is None) and not (folder / "test").exists():
        run("test", *common, *method.tested, f"--trainer.default_root_dir={folder}")
    if json.loads((folder / "run.json").read_text())["data_fingerprint"] != given.fingerprint:
        raise ValueError(f"{folder} was trained on other questions than the gold posterior's")
    if method.posterior is None:
        return tested(folder, given)
    draws = load_posterior(folder / method.posterior).sample(method.draws, generator(setting.seed, "methods", name))
    return sampled(draws, given)


def options_of(method: Method, setting: Setting) -> list[str]:
    """The command line of a row."""
    study = argparse.Namespace(labels=setting.labels, questions=setting.questions, steps=setting.steps)
    decay = 1 / (training_questions(setting.labels) * PRIOR_STD**2)  # IVON's prior is N(0, 1 / (N delta))
    return [
        *configuration(study, setting.seed),
        f"--data.ood=[{SHIFTED}]",
        *overlays(method.overlays),
        f"--model.lora.r={setting.rank}",
        f"--model.lora.alpha={SCALING * setting.rank}",
        f"--model.lora.target_modules=[{','.join(setting.sites)}]",
        f"--model.optimisation.learning_rate={LEARNING_RATE}",
        *([f"--model.optimisation.weight_decay={decay}"] if "ivon" in method.overlays else []),
        *method.options,
    ]


def training_questions(labels: int) -> int:
    """How many of the labels are trained on."""
    return labels - labels // 5


def sampled(draws: Mapping[str, Tensor], given: Problem) -> dict[str, Prediction]:
    """What draws of weights, name to ``[S, *shape]``, predict together."""
    weights = {name: value.double() for name, value in draws.items()}
    with torch.no_grad():
        return {name: mixed(one.network.logits(weights).softmax(-1)) for name, one in given.tests.items()}


def tested(folder: Path, given: Problem) -> dict[str, Prediction]:
    """What the package's own test of a run has predicted.

    Raises:
        ValueError: a test of other questions.
    """
    found = read_predictions(folder / "test" / "predictions.parquet").datasets
    for name, one in given.tests.items():
        truth = found[name].true_probs
        if truth is None or not torch.allclose(truth, one.true_probs):
            raise ValueError(f"{folder} was tested on other questions than the gold posterior")
    return {name: (found[name].probs, found[name].epistemic) for name in given.tests}
