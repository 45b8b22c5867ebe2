"""What became of a rule's promises on labelled questions: how many were answered, how many wrongly, and the sets."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from bayeslora.decisions.prediction_sets import uniform_noise, with_top
from bayeslora.decisions.rule import DecisionRule, decision_scores, keys_of
from bayeslora.metrics import scores
from bayeslora.metrics.answers import Answers
from bayeslora.metrics.intervals import clopper_pearson


@dataclass(frozen=True)
class Outcome:
    """A proportion that was promised to be at most, or at least, something.

    Attributes:
        count: Questions that count against the promise: wrong answers, or sets without the right option.
        total: Questions it was made for: those answered, or all.
        promised: The largest proportion promised.
    """

    count: int
    total: int
    promised: float

    @property
    def rate(self) -> float | None:
        """The proportion; None where there is no question."""
        return self.count / self.total if self.total else None

    @property
    def interval(self) -> tuple[float, float]:
        """Its exact 95 % interval (Clopper and Pearson)."""
        return clopper_pearson(self.count, self.total)

    @property
    def verdict(self) -> str:
        """``kept``, ``broken`` (its whole interval lies above), ``unclear`` (its interval reaches down to it)."""
        if self.rate is None:
            return "no answer"
        if self.rate <= self.promised:
            return "kept"
        return "broken" if self.interval[0] > self.promised else "unclear"


def count_answered(rule: DecisionRule, answers: Answers) -> dict[float, Outcome]:
    """For each risk of the rule, how many of the labelled questions its threshold answers and how many wrongly.

    Args:
        rule: The fitted decision rule.
        answers: What a method predicted for N questions, with their labels.
    """
    measured = decision_scores(answers)
    wrong = ~scores.correct(answers.probs, answers.label)
    found = {}
    for promise in rule.promises:
        best = promise.best
        given = measured[best.score] <= best.limit if best else torch.zeros_like(wrong)
        found[promise.risk] = Outcome(int((given & wrong).sum()), int(given.sum()), promise.risk)
    return found


def set_outcomes(rule: DecisionRule, answers: Answers) -> dict[str, tuple[Outcome, float]]:
    """For each kind of prediction set, how many miss the right option, and how many options a set holds on average.

    Args:
        rule: The fitted decision rule.
        answers: What a method predicted for N questions, with their labels.
    """
    noise = uniform_noise(keys_of(answers))
    found = {}
    for each in rule.sets:
        sets = with_top(each.sets(answers.probs, answers.options, noise), answers.probs)
        missed = int((~sets.gather(-1, answers.label[:, None])).sum())
        found[each.method] = (Outcome(missed, len(answers), each.alpha), float(sets.sum(-1).double().mean()))
    return found


def decision_numbers(rule: DecisionRule, answers: Answers) -> dict[str, float]:
    """The numbers of a rule on a labelled dataset, by name.

    For each risk, in per cent: ``answered_5`` (fraction of the questions answered), ``answered_5_error`` (fraction of
    the answers that are wrong; missing where nothing is answered) and ``answered_5_kept`` (1 where the error is at most
    the risk or nothing is answered, else 0). For each kind of set: ``set_lac_size`` (options on average) and
    ``set_lac_missed`` (fraction of the sets without the right option).

    Args:
        rule: The fitted decision rule.
        answers: What a method predicted for N questions, with their labels.
    """
    found: dict[str, float] = {}
    for risk, outcome in count_answered(rule, answers).items():
        name = f"answered_{100 * risk:g}"
        found[name] = outcome.total / len(answers)
        if outcome.rate is not None:
            found[f"{name}_error"] = outcome.rate
        found[f"{name}_kept"] = float(outcome.rate is None or outcome.rate <= risk)
    for method, (outcome, size) in set_outcomes(rule, answers).items():
        found |= {f"set_{method}_size": size, f"set_{method}_missed": outcome.count / outcome.total}
    return found


def decision_intervals(rule: DecisionRule, answers: Answers) -> dict[str, list[float]]:
    """Exact 95 % intervals of the errors and of the shares of missing options, by the same names.

    Args:
        rule: The fitted decision rule.
        answers: What a method predicted for N questions, with their labels.
    """
    errors = {f"answered_{100 * risk:g}_error": o for risk, o in count_answered(rule, answers).items() if o.total}
    missed = {f"set_{method}_missed": o for method, (o, _) in set_outcomes(rule, answers).items()}
    return {name: list(outcome.interval) for name, outcome in (errors | missed).items()}
