"""One setting of the comparison with the gold posterior: a label budget, a rank, what is sampled, and a seed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from gold.last_layer import cache, widen
from gold.network import Network, WholeModel
from gold.posterior import Target
from torch import Tensor

from bayeslora.datamodules.synthetic import SyntheticDataModule
from bayeslora.models.answer_model import AnswerModel
from bayeslora.models.loading import Backbone, LoRA, load_answer_model
from bayeslora.types import AnswerBatch

LAYERS = 2  # of the embedded base
SCALING = 2  # alpha / r, the quickstart's
PRIOR_STD = 0.3
SHIFTED = "synthetic:shifted"
INITIAL_STD = (3 * 128) ** -0.5  # of LoRA's A, which is uniform up to 1 / sqrt(128)


@dataclass(frozen=True)
class Setting:
    """What a gold posterior is made for.

    Attributes:
        labels: Budget of labels, a fifth of which is for validation and not seen by the posterior.
        rank: LoRA's r.
        sampled: ``AB``, or ``B`` with A where LoRA's initialisation puts it.
        seed: Draws the questions, LoRA's initial weights and the chains.
        questions: Of each test set.
        steps: Optimiser steps of the methods' trainings.
        layers: How many of the model's layers, from the last, have adapters.
    """

    labels: int = 50
    rank: int = 1
    sampled: str = "AB"
    seed: int = 0
    questions: int = 100
    steps: int = 300
    layers: int = 1

    @property
    def folder(self) -> Path:
        """Where its results are, below the folder of the study."""
        end = "" if self.layers == 1 else f"-layers-{self.layers}"
        return Path(f"labels-{self.labels}-r{self.rank}-{self.sampled}{end}") / f"seed-{self.seed}"

    @property
    def sites(self) -> list[str]:
        """The adapted projections."""
        layers = range(LAYERS - self.layers, LAYERS)
        return [f"layers.{layer}.self_attn.{name}" for layer in layers for name in ("q_proj", "v_proj")]

    @property
    def prior_std(self) -> float:
        """Of what is sampled: where A is fixed, entries of BA have the variance that they have where it is not."""
        return PRIOR_STD if self.sampled == "AB" else PRIOR_STD**2 / INITIAL_STD


@dataclass(frozen=True)
class Questions:
    """A test set.

    Attributes:
        network: What its questions go through.
        true_probs: The true answer probabilities ``[N, C]``.
    """

    network: Network
    true_probs: Tensor


@dataclass(frozen=True)
class Problem:
    """A setting with its model and its questions.

    Attributes:
        model: The adapted model in float64.
        target: The posterior's log density.
        tests: The test sets by their names, in distribution first.
        fingerprint: Of the questions, as the package's runs note it.
    """

    model: AnswerModel
    target: Target
    tests: Mapping[str, Questions]
    fingerprint: str


def problem(setting: Setting) -> Problem:
    """Load the model and the questions of a setting."""
    data = SyntheticDataModule(
        labels=setting.labels,
        batch_size=16,
        eval_batch_size=512,
        max_test=setting.questions,
        ood=[SHIFTED],
        seed=setting.seed,
    )
    data.setup("fit")
    data.setup("test")
    lora = LoRA(r=setting.rank, alpha=SCALING * setting.rank, target_modules=setting.sites)
    model = widen(load_answer_model(Backbone("embedded"), lora, setting.seed))
    initial = {name: value.detach().clone() for name, value in model.trainable().items()}
    (batch,) = data.train_eval_dataloader()
    target = Target(network(setting, model, batch), initial, setting.prior_std, setting.sampled)
    tests = {}
    for name, loader in zip(data.test_names, data.test_dataloader(), strict=True):
        (batch,) = loader
        order = batch.example_id.argsort()  # a loader's order is by length
        batch = batch.map(lambda tensor, order=order: tensor[order])
        truth = torch.tensor([one.true_probs for one in data.questions(name)], dtype=torch.float64)
        tests[name] = Questions(network(setting, model, batch), truth)
    return Problem(model, target, tests, data.fingerprint)


def network(setting: Setting, model: AnswerModel, batch: AnswerBatch) -> Network:
    """What a batch goes through: the last layer alone where no other has adapters."""
    return cache(model, [batch]) if setting.layers == 1 else WholeModel(model, batch)


def small(setting: Setting) -> Setting:
    """The same with few questions and steps, to see a script run."""
    return replace(setting, labels=10, questions=6, steps=4)
