"""Spaces, proposals and the file of trials: the same trials whatever was killed, and each batch told whole."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from bayeslora.errors import UsageError
from bayeslora.grid.proposals import Trial, propose
from bayeslora.grid.space import Range, Space, read_space
from bayeslora.grid.tuning import Tuning

RATE, RANK = "model.init_args.optimisation.learning_rate", "model.init_args.lora.r"
PARAMETERS = {RATE: {"low": 1e-5, "high": 1e-2, "log": True}, RANK: [4, 8, 16]}
FIRST = {RATE: 1e-4, RANK: 8}


def _space(folder: Path, **content: object) -> Space:
    file = folder / "space.yaml"
    file.write_text(yaml.safe_dump({"parameters": PARAMETERS, **content}, sort_keys=False))
    return read_space(file)


def _told(trials: list[Trial]) -> list[Trial]:
    """Trials that are better the nearer their rate is to 0.001; one of them has failed."""
    return [
        Trial(t.number, t.parameters, None, "the loss is not finite")
        if t.number == 2
        else Trial(t.number, t.parameters, abs(math.log10(t.parameters[RATE]) + 3))
        for t in trials
    ]


def _run(folder: Path, space: Space, killed: bool = False) -> list[Trial]:
    """A whole tuning; where it is killed, a new process reads the folder before every step."""
    tuning = Tuning(folder, [folder / "a.yaml"], space, FIRST, "5.0.0")
    while trials := tuning.batch():
        if killed:
            tuning = Tuning(folder, [folder / "a.yaml"], space, FIRST, "5.0.0")
            assert tuning.batch() == trials
        tuning.tell(_told(trials))
        if killed:
            tuning = Tuning(folder, [folder / "a.yaml"], space, FIRST, "5.0.0")
    return tuning.told


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_the_trials_are_the_same_whatever_is_killed(tmp_path: Path, sampler: str) -> None:
    pytest.importorskip("optuna", reason="needs Optuna: pip install 'bayeslora[tune]'")
    space = _space(tmp_path, sampler=sampler, trials=14, batch=4)
    whole, killed = _run(tmp_path / "whole", space), _run(tmp_path / "killed", space, killed=True)
    assert whole == killed
    assert [trial.number for trial in whole] == list(range(14))
    assert whole[0].parameters == FIRST
    assert len({trial.parameters[RATE] for trial in whole}) == 14
    assert all(1e-5 <= trial.parameters[RATE] <= 1e-2 and trial.parameters[RANK] in (4, 8, 16) for trial in whole)
    assert whole[2].failed


def test_what_every_trial_is_given_is_no_parameter(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="seed_everything is no parameter, since every trial is given its own"):
        _space(tmp_path, parameters={"seed_everything": [1, 2]})


def test_another_batch_is_another_tuning_and_so_is_another_version(tmp_path: Path) -> None:
    pytest.importorskip("optuna", reason="needs Optuna: pip install 'bayeslora[tune]'")
    space = _space(tmp_path, trials=4, batch=2)
    _run(tmp_path / "out", space)
    with pytest.raises(UsageError, match=r"holds the trials of another tuning: space was .*; give another --out"):
        Tuning(tmp_path / "out", [tmp_path / "a.yaml"], _space(tmp_path, trials=4, batch=3), FIRST, "5.0.0")
    with pytest.raises(UsageError, match=r"optuna was '5.0.0' and is '5.1.0'"):
        Tuning(tmp_path / "out", [tmp_path / "a.yaml"], space, FIRST, "5.1.0")


def test_a_sampler_learns_from_the_batches_before(tmp_path: Path) -> None:
    """TPE's first ten trials are random; later ones are nearer to the optimum than they, by their median."""
    pytest.importorskip("optuna", reason="needs Optuna: pip install 'bayeslora[tune]'")
    found = [t.nll for t in _run(tmp_path / "out", _space(tmp_path, trials=30, batch=5)) if t.nll is not None]
    assert sorted(found[-10:])[5] < sorted(found[:10])[5]


def test_a_grid_is_every_combination_and_the_configuration_as_it_is(tmp_path: Path) -> None:
    space = _space(tmp_path, sampler="grid", parameters={RATE: [1e-4, 1e-3], RANK: [4, 8]})
    assert space.trials == 5
    elsewhere = Trial(0, {RATE: 5e-4, RANK: 4})
    points = [tuple(trial.parameters.values()) for trial in propose(space, [elsewhere], 4)]
    assert points == [(1e-4, 4), (1e-4, 8), (1e-3, 4), (1e-3, 8)]


def test_a_grid_does_not_try_the_configuration_twice_and_ends_with_its_points(tmp_path: Path) -> None:
    space = _space(tmp_path, sampler="grid", trials=9, batch=3, parameters={RATE: [1e-4, 1e-3], RANK: [4, 8]})
    tuning = Tuning(tmp_path, [tmp_path / "a.yaml"], space, {RATE: 1e-3, RANK: 4}, "5.0.0")
    tried = []
    while batch := tuning.batch():
        tried += [tuple(trial.parameters.values()) for trial in batch]
        tuning.tell([replace(trial, nll=1.0) for trial in batch])
    assert tried == [(1e-3, 4), (1e-4, 4), (1e-4, 8), (1e-3, 8)]
    assert [trial.number for trial in tuning.told] == [0, 1, 2, 3]


def test_the_best_trial_is_the_first_of_the_best(tmp_path: Path) -> None:
    tuning = Tuning(tmp_path, [tmp_path / "a.yaml"], _space(tmp_path, trials=3, batch=3), FIRST, "5.0.0")
    assert tuning.best() is None
    tuning.tell([Trial(0, FIRST, 0.5), Trial(1, FIRST, 0.4), Trial(2, FIRST, 0.4)])
    assert tuning.best() == Trial(1, FIRST, 0.4)


def test_what_is_in_a_range() -> None:
    assert 4 in Range(2, 8, step=2)
    assert 5 not in Range(2, 8, step=2)
    assert 4.5 not in Range(2, 8)
    assert 1e-4 in Range(1e-5, 1e-3, log=True)
    switch: object = True  # equal to 1, but no number that a user would have meant
    assert switch not in Range(0, 1)
    assert "4" not in Range(2, 8)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"sampler": "cma"}, "sampler is 'cma'; allowed: tpe, random, grid"),
        ({"trials": 0}, "trials is 0; allowed: a whole number from 1 on"),
        ({"seeds": [0, 0]}, "seeds is"),
        ({"parameters": {}}, "parameters is {}; allowed"),
        ({"parameters": {RATE: {"low": 1, "high": 0}}}, "allowed: numbers with low below high"),
        ({"parameters": {RATE: {"low": 0, "high": 1, "log": True}}}, "log is True; allowed: true for low > 0"),
        ({"parameters": {RANK: []}}, "allowed: different numbers, words or booleans"),
        ({"parameters": {RANK: {"low": 1, "high": 4}}, "sampler": "grid"}, "is a range; allowed for the sampler grid"),
        ({"budget": 3}, "key of the space is 'budget'; allowed: sampler, trials"),
    ],
)
def test_a_space_that_makes_no_sense_is_refused(tmp_path: Path, content: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        _space(tmp_path, **content)
