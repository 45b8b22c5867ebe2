"""The course of a training as the ``Dynamics`` callback wrote it: predictions of the base and of its epochs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from bayeslora.errors import UsageError
from bayeslora.files import read_record
from bayeslora.metrics.answers import UNKNOWN, Answers
from bayeslora.results.dynamics.measures import quality
from bayeslora.results.prediction_file import read_predictions
from bayeslora.types import CONTRACT_VERSION

VALIDATION = "validation"  # as the datamodules call it, which need more than files to be imported


@dataclass(frozen=True)
class Epoch:
    """What was predicted after so many epochs.

    Attributes:
        number: Of epochs trained; 0 is the base model.
        datasets: Name to answers, the in-distribution test set first.
        cosine: Cosines between the members' low-rank updates ``[M, M]``, NaN where one is zero; None where not known.
    """

    number: int
    datasets: Mapping[str, Answers]
    cosine: Tensor | None = None


@dataclass(frozen=True)
class Course:
    """A training from the base model on.

    Attributes:
        epochs: In order; the first is the base model.
        method: Name of the method.
        seed: Seed of the run.
    """

    epochs: Sequence[Epoch]
    method: str
    seed: int | None = None

    @property
    def datasets(self) -> list[str]:
        """Names of the sets, in distribution first."""
        return list(self.epochs[0].datasets)

    @property
    def numbers(self) -> list[int]:
        """Numbers of the epochs."""
        return [epoch.number for epoch in self.epochs]

    @property
    def chosen_by(self) -> str:
        """The set that decides which epoch is the best, validation or, where there is none, the first."""
        return VALIDATION if VALIDATION in self.datasets else self.datasets[0]

    @property
    def best(self) -> Epoch:
        r"""The epoch e* with the lowest negative log-likelihood of the averaged prediction; later ones overfit."""
        return min(self.epochs, key=lambda epoch: _nll(epoch.datasets[self.chosen_by]))

    def of(self, dataset: str) -> list[Answers]:
        """The answers to one set, epoch by epoch."""
        return [epoch.datasets[dataset] for epoch in self.epochs]


def epochs_folder(run: Path) -> Path:
    """The folder with the epochs: that of a run, or the one that is given."""
    return run if any(run.glob("epoch-*.json")) else run / "dynamics"


def read_course(run: Path) -> Course:
    """Read what the ``Dynamics`` callback left in a run folder, or in a folder; unfinished epochs are left out.

    Raises:
        UsageError: no epochs, no base model, a damaged file, missing labels, or epochs with different questions.
    """
    folder = epochs_folder(run)
    epochs = sorted((_read_epoch(file) for file in folder.glob("epoch-*.json")), key=lambda found: found[0].number)
    if not epochs:
        raise UsageError(f"no epochs in {folder}; train with the callback bayeslora.callbacks.Dynamics")
    if epochs[0][0].number != 0:
        raise UsageError(
            f"{folder} starts with epoch {epochs[0][0].number} and lacks the base model, epoch 0; train from the start "
            "with the callback"
        )
    course = Course([epoch for epoch, _, _ in epochs], epochs[-1][1], epochs[-1][2])
    _check(course, folder)
    return course


def join_courses(courses: Sequence[Course]) -> Course:
    """Trainings of one member each, or of several, as one ensemble of all their members.

    Raises:
        UsageError: they have other epochs, or answered other questions.
    """
    first = courses[0]
    for other in courses[1:]:
        if other.numbers != first.numbers or other.datasets != first.datasets:
            raise UsageError("the runs have different epochs or sets; give runs that were trained and followed alike")
        for name in first.datasets:
            _check_questions(other.epochs[0].datasets[name], first.epochs[0].datasets[name], f"{name} of the runs")
    if len(courses) == 1:
        return first
    epochs = [
        Epoch(number, {name: _stacked([c.epochs[place].datasets[name] for c in courses]) for name in first.datasets})
        for place, number in enumerate(first.numbers)
    ]
    return Course(epochs, first.method, first.seed)


def _stacked(parts: Sequence[Answers]) -> Answers:
    members = torch.cat([part.members for part in parts if part.members is not None], dim=1)
    return replace(parts[0], probs=members.mean(1), members=members, logits=None, logsumexp=None)


def _read_epoch(file: Path) -> tuple[Epoch, str, int | None]:
    record = read_record(file, "train again with the callback")
    if record.get("schema") != CONTRACT_VERSION:
        raise UsageError(f"{file} has schema {record.get('schema')}; this version reads schema {CONTRACT_VERSION}")
    found = read_predictions(file.with_suffix(".parquet"))
    rows = [[float("nan") if value is None else value for value in row] for row in record["cosine"]]
    return Epoch(record["epoch"], found.datasets, torch.tensor(rows)), found.method, found.seed


def _check(course: Course, folder: Path) -> None:
    for name, answers in course.epochs[0].datasets.items():
        unlabelled = int((answers.label == UNKNOWN).sum())
        if unlabelled:
            raise UsageError(f"{unlabelled} questions of {name} in {folder} have no label; give Dynamics a label_fn")
    for epoch in course.epochs:
        where = f"epochs 0 and {epoch.number} in {folder}"
        if list(epoch.datasets) != course.datasets:
            raise UsageError(f"{where} hold different sets; follow a training with the same sets throughout")
        for name, answers in epoch.datasets.items():
            if answers.members is None:
                raise UsageError(f"{name} in {where} is a Gaussian over logits; dynamics are those of members")
            _check_questions(answers, course.epochs[0].datasets[name], f"{name} of {where}")


def _check_questions(one: Answers, other: Answers, where: str) -> None:
    if list(one.example_id) != list(other.example_id) or not torch.equal(one.label, other.label):
        raise UsageError(f"{where} has different questions; dynamics compare answers to the same ones")


def _nll(answers: Answers) -> float:
    return quality(answers.probs, answers.label)["nll"]
