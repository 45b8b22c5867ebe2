"""Prediction sets against MAPIE, their coverage, and that a set is the same alone and in any batch."""

import doctest
import math

import numpy as np
import pytest
import torch

from bayeslora.decisions import prediction_sets
from bayeslora.decisions.prediction_sets import (
    METHODS,
    SetRule,
    choose_penalty,
    conformal_quantile,
    fit_sets,
    option_scores,
    uniform_noise,
    with_top,
)

Drawn = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]


def drawn(n: int, options: int, seed: int, sharpness: float = 1.5) -> Drawn:
    """Probabilities, labels drawn from a flatter law than they say, option counts, and noise."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(n, options, generator=generator, dtype=torch.float64)
    label = torch.multinomial(logits.softmax(-1), 1, generator=generator).squeeze(1)
    noise = torch.rand(n, generator=generator, dtype=torch.float64)
    return (sharpness * logits).softmax(-1), label, torch.full((n,), options), noise


def test_examples() -> None:
    found = doctest.testmod(prediction_sets, extraglobs={"torch": torch})
    assert found.attempted >= 1
    assert found.failed == 0


@pytest.mark.parametrize(
    ("n", "alpha", "place"),
    [
        (100, 0.1, 91),
        (100, 0.05, 96),
        (299, 0.1, 270),
        (299, 0.05, 285),
        (500, 0.1, 451),
        (149, 0.18, 123),
        (9, 0.1, 9),
        (40, 1 - 1e-12, 1),
    ],
)
def test_the_quantile_is_the_exact_place(n: int, alpha: float, place: int) -> None:
    assert conformal_quantile(torch.arange(1.0, n + 1).flip(0), alpha) == place
    assert math.isinf(conformal_quantile(torch.arange(8.0), 0.1))


class Probabilities:
    """An estimator whose input is its prediction."""

    def __init__(self, classes: int) -> None:
        self.classes_ = np.arange(classes)

    def fit(self, x: np.ndarray, y: np.ndarray) -> "Probabilities":
        return self

    def __sklearn_is_fitted__(self) -> bool:
        return True

    def predict(self, x: np.ndarray) -> np.ndarray:
        return x.argmax(1)

    def predict_proba(self, x: np.ndarray) -> np.ndarray:
        return x


@pytest.mark.parametrize("alpha", [0.1, 0.25])
@pytest.mark.parametrize("method", ["lac", "aps"])
def test_sets_are_those_of_mapie(method: str, alpha: float) -> None:
    mapie = pytest.importorskip("mapie.classification", reason="the oracle, MAPIE, is not installed")
    (probs, label, _, _), (new, _, options, _) = drawn(300, 5, 0), drawn(200, 5, 1)
    seed = 7  # of both of MAPIE's draws: it takes u by row
    before, now = (torch.from_numpy(np.random.RandomState(seed).uniform(size=n)) for n in (300, 200))
    theirs = mapie.SplitConformalClassifier(
        Probabilities(5), confidence_level=1 - alpha, conformity_score=method, prefit=True, random_state=seed
    )
    theirs.conformalize(probs.numpy(), label.numpy())
    how = {} if method == "lac" else {"conformity_score_params": {"include_last_label": "randomized"}}
    _, sets = theirs.predict_set(new.numpy(), **how)
    rule = fit_sets(method, probs, label, before, alpha)
    quantile = float(np.ravel(theirs._mapie_classifier.conformity_score_function_.quantiles_)[0])
    assert rule.threshold == pytest.approx(quantile, abs=1e-12)
    ours = rule.sets(new, options, now)
    assert torch.equal(ours, torch.from_numpy(sets[:, :, 0]))
    assert 0 < ours.sum() < ours.numel()


def test_raps_scores_are_those_of_mapie() -> None:
    """MAPIE tunes lambda on questions of its own, so its sets are met at its lambda and k."""
    mapie = pytest.importorskip("mapie.classification", reason="the oracle, MAPIE, is not installed")
    (probs, label, _, _), (new, _, options, _) = drawn(400, 6, 2, 0.7), drawn(200, 6, 3, 0.7)
    seed = 3
    theirs = mapie.SplitConformalClassifier(
        Probabilities(6), confidence_level=0.9, conformity_score="raps", prefit=True, random_state=seed
    )
    theirs.conformalize(probs.numpy(), label.numpy())
    how = {"conformity_score_params": {"include_last_label": True}}
    _, sets = theirs.predict_set(new.numpy(), **how)
    inner = theirs._mapie_classifier.conformity_score_function_
    penalty, free = float(np.ravel(inner.lambda_star)[0]), int(np.ravel(inner.k_star)[0])
    threshold = float(np.ravel(inner.quantiles_)[0])
    rule = SetRule("raps", 0.1, threshold, 400, penalty, free)
    whole = option_scores(new, torch.zeros(200), "raps", penalty, free) <= threshold
    ours = rule.sets(new, options, torch.zeros(200))
    assert torch.equal(ours, whole)
    more = torch.from_numpy(sets[:, :, 0])  # with the option that crosses the threshold, which ours has by chance u
    assert (ours & ~more).sum() == 0
    assert ((more.sum(1) - ours.sum(1)) <= 1).all()


@pytest.mark.parametrize("options", [2, 4])
@pytest.mark.parametrize("method", METHODS)
def test_coverage_is_what_was_asked(method: str, options: int) -> None:
    """Over 200 calibration sets, 1 - alpha to two standard errors: exactly .9 at 99 questions."""
    covered, served = [], []
    for seed in range(200):
        probs, label, counts, noise = drawn(99, options, seed)
        rule = fit_sets(method, probs, label, noise, 0.1, penalty=0.1, free=1)
        new, truth, counts, noise = drawn(500, options, 1000 + seed)
        sets = rule.sets(new, counts, noise)
        right = torch.arange(500), truth
        covered.append(float(sets[right].double().mean()))
        served.append(float(with_top(sets, new)[right].double().mean()))
        assert with_top(sets, new).any(-1).all()
    error = np.std(covered, ddof=1) / math.sqrt(200)
    assert abs(np.mean(covered) - 0.9) < 2 * error + 1e-12
    assert np.mean(served) >= np.mean(covered)


def test_too_few_questions_give_every_option_that_exists() -> None:
    probs, label, _, noise = drawn(8, 3, 0)
    probs[:, 2] = 0
    rule = fit_sets("lac", probs, label.clamp(max=1), noise, 0.1)
    sets = rule.sets(probs, torch.full((8,), 2), noise)
    assert sets.tolist() == [[True, True, False]] * 8


@pytest.mark.parametrize("method", METHODS)
def test_a_set_is_the_same_alone_in_any_batch_and_with_padding(method: str) -> None:
    probs, label, options, _ = drawn(64, 4, 5)
    keys = [f"question {i}" for i in range(64)]
    rule = fit_sets(method, probs, label, uniform_noise(keys), 0.2, penalty=0.05, free=1)
    together = rule.sets(probs, options, uniform_noise(keys))
    wide = torch.nn.functional.pad(probs, (0, 3))
    for row in range(0, 64, 7):
        alone = rule.sets(wide[[row]], options[[row]], uniform_noise([keys[row]]))
        assert alone[0, :4].tolist() == together[row].tolist()
        assert not alone[0, 4:].any()


def test_noise_is_uniform_and_belongs_to_its_key() -> None:
    noise = uniform_noise(range(4000))
    assert ((noise >= 0) & (noise < 1)).all()
    assert float(noise.mean()) == pytest.approx(0.5, abs=0.02)
    assert float(noise.var()) == pytest.approx(1 / 12, abs=0.005)
    assert uniform_noise([5, 3]).tolist() == [noise[5], noise[3]]


def test_raps_takes_the_penalty_of_the_smallest_sets() -> None:
    probs, label, options, noise = drawn(300, 8, 6, sharpness=0.3)
    penalty, free = choose_penalty(probs, label, options, noise, 0.1)
    sizes = {
        value: fit_sets("raps", probs, label, noise, 0.1, value, free).sets(probs, options, noise).sum().item()
        for value in (0.001, 0.01, 0.1, 0.2, 0.5)
    }
    assert sizes[penalty] == min(sizes.values())
    ranks = (probs > probs.gather(1, label[:, None])).sum(1) + 1
    assert free == conformal_quantile(ranks.double(), 0.1)
