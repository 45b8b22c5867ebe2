"""Thresholds on an uncertainty below which answers are wrong at most as often as was promised.

A threshold is fixed by tests that are exact for any number of questions: learn-then-test (Angelopoulos et al. 2021,
arXiv 2110.01052) with binomial tests, as in Geifman & El-Yaniv (2017, arXiv 1705.08500), in a fixed sequence. What the
promise says: with probability 1 - delta over the questions it was fitted on, the error among the *answered* questions
of the same population is at most ``risk``. It says nothing about one question, one class, or another population.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from scipy.special import bdtr
from torch import Tensor

from bayeslora.metrics.intervals import clopper_pearson

SCORES = {"one_minus_confidence": "1 - confidence", "total": "entropy", "epistemic": "mutual information"}
_STEPS = 40  # thresholds tested in a sequence
_SAME = 1e-9  # scores closer than that have no order


@dataclass(frozen=True)
class Threshold:
    """A certified threshold: questions whose score is at most ``limit`` are answered.

    Attributes:
        score: Which uncertainty, a key of ``SCORES``.
        limit: The largest score that is answered; infinite where every question is.
        delta: Probability with which its own test may be wrong: a share of the promise's.
        questions: Calibration questions.
        answered: How many of them it answers.
        wrong: How many of those answers are wrong.
        p_value: Of the hypothesis that its error is above the risk.
    """

    score: str
    limit: float
    delta: float
    questions: int
    answered: int
    wrong: int
    p_value: float

    @property
    def coverage(self) -> float:
        """Fraction of the calibration questions that it answers."""
        return self.answered / self.questions


@dataclass(frozen=True)
class Promise:
    """What can be said about one risk: a threshold for each score that passed, or why there is none.

    Attributes:
        risk: Largest error rate among answers.
        delta: Probability, over calibration sets, with which it may be exceeded all the same.
        thresholds: At most one of each score; all hold together with probability 1 - ``delta``.
        reason: Empty, or why no threshold was certified and what could be promised instead.
    """

    risk: float
    delta: float
    thresholds: tuple[Threshold, ...]
    reason: str = ""

    @property
    def best(self) -> Threshold | None:
        """The threshold that answers most calibration questions, the first of several; None where there is none."""
        return max(self.thresholds, key=lambda threshold: threshold.answered, default=None)


def p_value(answered: int, wrong: int, risk: float) -> float:
    r"""Exact p-value of "the error rate is above ``risk``": :math:`P(\mathrm{Bin}(n, \alpha) \le k)`.

    Args:
        answered: Number n of answers.
        wrong: Number k of wrong ones.
        risk: The rate :math:`\alpha`, between 0 and 1.

    >>> round(p_value(45, 0, 0.05), 5), round(p_value(77, 1, 0.05), 5)
    (0.09944, 0.09733)
    """
    return float(bdtr(wrong, answered, risk)) if answered else 1.0


def fewest(risk: float, delta: float, wrong: int = 0) -> int:
    r"""Smallest number of answers that proves a risk with confidence 1 - ``delta`` when ``wrong`` of them are wrong.

    Without an error it is :math:`\lceil \ln\delta / \ln(1 - \alpha) \rceil`.

    Args:
        risk: The fraction of wrong answers that is allowed.
        delta: The probability with which the promise may fail.
        wrong: How many of the answers are wrong.

    >>> fewest(0.05, 0.1), fewest(0.05, 0.1, wrong=1)
    (45, 77)
    """
    low, high = wrong, wrong + 1
    while p_value(high, wrong, risk) > delta:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if p_value(middle, wrong, risk) <= delta else (middle, high)
    return high


def upper_bound(answered: int, wrong: int, delta: float) -> float:
    """Clopper and Pearson's bound: the smallest risk that so many answers prove with confidence 1 - ``delta``.

    Args:
        answered: How many questions are answered.
        wrong: How many of the answers are wrong.
        delta: The probability with which the promise may fail.

    >>> round(upper_bound(200, 5, 0.1), 5)
    0.04588
    """
    return clopper_pearson(wrong, answered, 1 - 2 * delta)[1] if answered else 1.0


def limits(selection: Tensor, wrong: Tensor, questions: int, risk: float, delta: float) -> Tensor:
    r"""The thresholds to test, from strict to lax, fixed before any calibration question is looked at.

    They stand halfway between neighbouring scores of the selection part, at most 40 of them, the last one infinite (it
    answers every question). The sequence ends at its first failure, so it must not begin where little can pass: where
    few questions are answered none may be wrong. It begins at the threshold that is most likely to pass,

    .. math:: P(\mathrm{Bin}(n_\lambda, \hat r_\lambda) \le k(n_\lambda)), \quad \hat r_\lambda = \frac{w + 1/2}{m + 1}

    with :math:`n_\lambda` the number of calibration questions it is expected to answer, k the most errors among them
    that pass the test, and w of the m selection questions below it answered wrongly.

    Args:
        selection: Scores of the selection part ``[M]``.
        wrong: Which of them would be answered wrongly, bool ``[M]``.
        questions: Number of calibration questions.
        risk: Largest error rate.
        delta: Level of each test.

    Returns:
        Increasing limits, float64 ``[G]``; empty where there are too few questions for any of them.
    """
    order = selection.double().argsort()
    ordered, errors = selection.double()[order], wrong[order].double().cumsum(0)
    rising = torch.cat([ordered[1:] - ordered[:-1] > _SAME, torch.ones(1, dtype=torch.bool)])
    middles = torch.cat([(ordered[1:] + ordered[:-1]) / 2, ordered.new_tensor([math.inf])])[rising]
    below = (rising.nonzero().squeeze(1) + 1).double()
    rate = (errors[rising] + 0.5) / (below + 1)
    answered = (below / len(ordered) * questions).round()
    allowed = [most_errors(int(n), risk, delta) for n in answered]
    power = [
        bdtr(k, n, r) if k >= 0 else -1.0 for k, n, r in zip(allowed, answered.tolist(), rate.tolist(), strict=True)
    ]  # of many wrong answers it is 0, less than the smallest number there is
    if max(power) < 0:
        return middles[:0]
    middles = middles[int(torch.tensor(power).argmax()) :]
    chosen = torch.linspace(0, len(middles) - 1, min(_STEPS, len(middles))).round().long()
    return middles[chosen]


def most_errors(answered: int, risk: float, delta: float) -> int:
    """The most wrong answers among so many with which a risk is still proven; -1 where so few answers prove nothing.

    Args:
        answered: How many questions are answered.
        risk: The fraction of wrong answers that is allowed.
        delta: The probability with which the promise may fail.

    >>> most_errors(200, 0.05, 0.1), most_errors(44, 0.05, 0.1)
    (5, -1)
    """
    low, high = -1, answered
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if p_value(answered, middle, risk) <= delta else (low, middle)
    return low


def fixed_sequence(tests: Sequence[tuple[int, int]], risk: float, delta: float) -> int | None:
    """Place of the last threshold of a sequence that passes before the first that fails; None where the first fails.

    Because the order is fixed beforehand, every test may be made at the full ``delta``. To take the laxest threshold
    that passes, whatever failed before it, would break the promise.

    Args:
        tests: Answered and wrong at each threshold, from strict to lax.
        risk: Largest error rate.
        delta: Level of each test.

    >>> fixed_sequence([(50, 0), (80, 1), (120, 2), (160, 5), (200, 5)], 0.05, 0.1)
    2
    """
    passed = None
    for place, (answered, wrong) in enumerate(tests):
        if p_value(answered, wrong, risk) > delta:
            break
        passed = place
    return passed


@dataclass(frozen=True)
class Scored:
    """Labelled questions, as thresholds see them.

    Attributes:
        scores: Uncertainties by name, ``[N]`` each.
        wrong: Which questions would be answered wrongly, bool ``[N]``.
    """

    scores: Mapping[str, Tensor]
    wrong: Tensor


def certify(selection: Scored, calibration: Scored, risk: float, delta: float) -> Promise:
    """Thresholds of every score for one risk, each tested at ``delta`` over the number of scores.

    Scores that tell nothing new are left out, by what they are on the selection part: those that are all the same (the
    mutual information of a single network) and those in the order of an earlier one (entropy, with two options).

    Args:
        selection: Questions that say which thresholds are tested.
        calibration: Questions on which they are.
        risk: Largest error rate among answers.
        delta: Probability with which it may be exceeded.
    """
    names = informative(selection.scores)
    share, questions = delta / len(names), len(calibration.wrong)
    found, starts = [], []
    for name in names:
        grid = limits(selection.scores[name], selection.wrong, questions, risk, share)
        answered = calibration.scores[name][None] <= grid[:, None]
        tests = list(zip(answered.sum(1).tolist(), (answered & calibration.wrong).sum(1).tolist(), strict=True))
        place = fixed_sequence(tests, risk, share)
        if place is not None:
            n, k = tests[place]
            found.append(Threshold(name, float(grid[place]), share, questions, n, k, p_value(n, k, risk)))
        starts += tests[:1]
    promise = Promise(risk, delta, tuple(found))
    return promise if found else replace(promise, reason=_why_not(promise, len(names), questions, starts))


def informative(scores: Mapping[str, Tensor]) -> list[str]:
    """Names of the scores that are not constant and not in the order of an earlier one; at least the first."""
    kept: list[str] = []
    for name, values in scores.items():
        if float(values.max() - values.min()) > _SAME and not any(_same_order(scores[k], values) for k in kept):
            kept.append(name)
    return kept or list(scores)[:1]


def _same_order(first: Tensor, second: Tensor) -> bool:
    return all(bool((b[a.argsort()].diff() > -_SAME).all()) for a, b in ((first, second), (second, first)))


def _why_not(promise: Promise, tests: int, questions: int, starts: Sequence[tuple[int, int]]) -> str:
    share = promise.delta / tests
    asked = f"{percent(promise.risk)} with confidence {at_least(1 - promise.delta)}"
    least = fewest(promise.risk, share)
    split = f" (delta is divided among {tests} scores)" if tests > 1 else ""
    if least > questions:
        reach = upper_bound(questions, 0, share)
        return (
            f"{asked} needs at least {least} answered questions without an error{split}, {least - questions} more than "
            f"the {questions} there are; with these, {percent(reach)} at best"
        )
    reach, answered, wrong = min((upper_bound(n, k, share), n, k) for n, k in starts)
    return (
        f"{asked} is not reached: of the {answered} answers at the strictest threshold {wrong} are wrong{split}; "
        f"these prove {percent(reach)}"
    )


def percent(share: float) -> str:
    """A share in per cent, to as many digits as it needs, rounded up to a tenth.

    >>> percent(0.05), percent(0.0559)
    ('5 %', '5.6 %')
    """
    return f"{math.ceil(1000 * share - 1e-9) / 10:g} %"


def at_least(share: float) -> str:
    """A share that is promised to be reached, in per cent: rounded down, so that no more is said than holds.

    >>> at_least(0.9), at_least(0.9996)
    ('90 %', '99.9 %')
    """
    return f"{math.floor(1000 * share + 1e-9) / 10:g} %"
