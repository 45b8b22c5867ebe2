"""The decision rule of a run: which answers to give, which to leave, and which options to name beside each."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from bayeslora.decisions import prediction_sets
from bayeslora.decisions.prediction_sets import SetRule
from bayeslora.decisions.selective_risk import SCORES, Promise, Scored, at_least, certify, percent
from bayeslora.errors import UsageError, require, require_choice
from bayeslora.metrics import scores
from bayeslora.metrics.answers import UNKNOWN, Answers
from bayeslora.types import Predictive

RISKS = (0.02, 0.05, 0.1)


@dataclass(frozen=True)
class Decided:
    """What a rule makes of N questions.

    Attributes:
        choice: The most probable option, int64 ``[N]``.
        confidence: Its probability, float64 ``[N]``.
        sets: The prediction sets, bool ``[N, C]``; never empty.
        empty: Which of them were empty before the chosen option was put in, bool ``[N]``.
        abstain: Which questions are not to be answered, bool ``[N]``.
        reason: Why, N texts; empty where a question is answered.
    """

    choice: Tensor
    confidence: Tensor
    sets: Tensor
    empty: Tensor
    abstain: Tensor
    reason: Sequence[str]


@dataclass(frozen=True)
class DecisionRule:
    """Thresholds and prediction sets, fitted once and kept with a run.

    Attributes:
        promises: What was found for each risk. Each holds with its own delta; all M together only with M times that.
        sets: A rule for every kind of prediction set.
        risk: Which promise decides about abstention.
        set_method: Which kind of set is given.
        exact: Whether the rule was fitted on questions that nothing else was fitted or chosen on; the promises are
            approximate otherwise.
        method: The method whose predictions it belongs to; a rule means nothing for those of another.
        selection: Number of questions from which the thresholds to test were taken.
        calibration: Number of questions on which they were tested.

    Example:
        >>> import torch
        >>> from bayeslora.decisions.rule import fit_rule
        >>> from bayeslora.metrics.answers import Answers
        >>> n = 400
        >>> probs = torch.tensor([[0.9, 0.1]], dtype=torch.float64).expand(n, 2)
        >>> answers = Answers(
        ...     probs, torch.zeros(n, dtype=torch.long), torch.full((n,), 2), probs[:, None], key=torch.arange(n)
        ... )
        >>> rule = fit_rule(answers, answers, "mle")
        >>> bool(rule(answers).abstain.any())  # all these questions are answered right
        False
    """

    promises: tuple[Promise, ...]
    sets: tuple[SetRule, ...]
    risk: float
    set_method: str
    exact: bool
    method: str
    selection: int
    calibration: int

    @property
    def promise(self) -> Promise:
        """The promise that decides about abstention."""
        return next(promise for promise in self.promises if promise.risk == self.risk)

    @property
    def set_rule(self) -> SetRule:
        """The rule of the sets that are given."""
        return next(rule for rule in self.sets if rule.method == self.set_method)

    def at(self, risk: float | None = None, set_method: str | None = None) -> DecisionRule:
        """The same rule, deciding by another of its risks or giving another of its kinds of sets.

        Args:
            risk: One of the risks that the rule was fitted for; None keeps the present one.
            set_method: One of its kinds of prediction sets (``lac``, ``aps``, ``raps``); None keeps the present one.

        Raises:
            UsageError: If it was not fitted for that.
        """
        risk = self.risk if risk is None else risk
        set_method = self.set_method if set_method is None else set_method
        require_choice("risk", risk, [promise.risk for promise in self.promises])
        require_choice("set_method", set_method, [rule.method for rule in self.sets])
        return replace(self, risk=risk, set_method=set_method)

    def __call__(self, answers: Answers | Predictive, keys: Sequence[int | str] | None = None) -> Decided:
        """Decide about N questions, each as if it were alone.

        Args:
            answers: What is predicted for them.
            keys: What tells each question from all others, N of them, on which the noise of randomised sets depends;
                None takes those of the answers (see :func:`keys_of`).
        """
        if isinstance(answers, Predictive):
            answers = Answers.from_predictive(answers)
        noise = prediction_sets.uniform_noise(keys_of(answers) if keys is None else keys)
        sets = self.set_rule.sets(answers.probs, answers.options, noise)
        abstain, reason = self._abstain(answers)
        return Decided(
            choice=answers.probs.argmax(-1),
            confidence=scores.confidence(answers.probs),
            sets=prediction_sets.with_top(sets, answers.probs),
            empty=~sets.any(-1),
            abstain=abstain,
            reason=reason,
        )

    def _abstain(self, answers: Answers) -> tuple[Tensor, list[str]]:
        threshold = self.promise.best
        if threshold is None:
            return torch.ones(len(answers), dtype=torch.bool), [f"no threshold: {self.promise.reason}"] * len(answers)
        score = decision_scores(answers)[threshold.score]
        abstain = ~(score <= threshold.limit)
        title = SCORES[threshold.score]
        reason = [
            f"{title} is {value:.4g}, above {threshold.limit:.4g}" if over else ""
            for value, over in zip(score.tolist(), abstain.tolist(), strict=True)
        ]
        return abstain, reason


def decision_scores(answers: Answers) -> dict[str, Tensor]:
    """The uncertainties by which questions are answered or left, by their names in ``SCORES``, float64 ``[N]`` each."""
    return {"one_minus_confidence": 1 - scores.confidence(answers.probs), "total": answers.total} | {
        "epistemic": answers.epistemic
    }


def keys_of(answers: Answers) -> Sequence[int | str]:
    """A key for each question: made of its content where that was kept, otherwise its name, otherwise its place."""
    if answers.key is not None:
        return [int(key) for key in answers.key]
    return list(answers.example_id) or list(range(len(answers)))


def fit_rule(
    selection: Answers,
    calibration: Answers | None,
    method: str,
    risks: Sequence[float] = RISKS,
    risk: float = 0.05,
    delta: float = 0.1,
    alpha: float = 0.1,
    set_method: str = "lac",
) -> DecisionRule:
    """Fit a rule on labelled questions.

    Args:
        selection: Questions that may have been used before (for a checkpoint, for a temperature): they say which
            thresholds are tested.
        calibration: Questions that nothing was fitted or chosen on. None takes the selection's again, and the promises
            are then approximate.
        method: Name of the method that predicted.
        risks: Error rates among answers to find thresholds for.
        risk: Which of them decides about abstention; it is added where it is not among them.
        delta: Probability with which each may be exceeded.
        alpha: Probability with which a prediction set may miss the right option.
        set_method: Which kind of set is given: ``lac``, ``aps`` or ``raps``.

    Raises:
        UsageError: If a number is no probability, or a label is not known.
    """
    for name, value in (("delta", delta), ("alpha", alpha), *(("risk", value) for value in (*risks, risk))):
        require(name, value, 0 < value < 1, "above 0 and below 1")
    require_choice("set_method", set_method, prediction_sets.METHODS)
    exact, calibration = calibration is not None, selection if calibration is None else calibration
    for part in (selection, calibration):
        if not len(part) or bool((part.label == UNKNOWN).any()):
            raise UsageError("a decision rule is fitted on labelled questions; give it at least one, with its label")
    before, now = (
        Scored(decision_scores(part), ~scores.correct(part.probs, part.label)) for part in (selection, calibration)
    )
    wanted = sorted({*risks, risk})
    return DecisionRule(
        promises=tuple(certify(before, now, each, delta) for each in wanted),
        sets=_set_rules(selection, calibration, alpha),
        risk=risk,
        set_method=set_method,
        exact=exact,
        method=method,
        selection=len(selection),
        calibration=len(calibration),
    )


def _set_rules(selection: Answers, calibration: Answers, alpha: float) -> tuple[SetRule, ...]:
    before, now = (prediction_sets.uniform_noise(keys_of(part)) for part in (selection, calibration))
    penalty, free = prediction_sets.choose_penalty(selection.probs, selection.label, selection.options, before, alpha)
    probs, label = calibration.probs, calibration.label
    return tuple(
        prediction_sets.fit_sets(name, probs, label, now, alpha, *((penalty, free) if name == "raps" else ()))
        for name in prediction_sets.METHODS
    )


def describe(rule: DecisionRule) -> list[str]:
    """The rule in words, a line for each promise and one for the sets."""
    about = "" if rule.exact else " (approximate: there was no calibration part, validation questions were used twice)"
    lines = []
    for promise in rule.promises:
        best = promise.best
        if best is None:
            lines.append(f"error at most {promise.reason}{about}")
            continue
        limit = "every question" if math.isinf(best.limit) else f"{SCORES[best.score]} at most {best.limit:.4g}"
        lines.append(
            f"error at most {percent(promise.risk)} with confidence {at_least(1 - promise.delta)}: answer {limit} "
            f"({best.answered} of {best.questions} calibration questions, {best.wrong} wrong){about}"
        )
    sets = rule.set_rule
    full = "" if math.isfinite(sets.threshold) else f"; {sets.questions} questions are too few, sets hold every option"
    lines.append(f"prediction sets ({sets.method}) hold the right option in {at_least(1 - sets.alpha)}{full}{about}")
    return lines
