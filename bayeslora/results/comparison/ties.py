"""Which rows of a column are the best, or not to be told from the best, on the questions that all of them answered."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import combinations

import torch
from scipy.special import ndtr
from torch import Tensor

from bayeslora.metrics import scores
from bayeslora.metrics.answers import Answers
from bayeslora.metrics.bins import bin_index
from bayeslora.metrics.evaluate import FLOOR_BINS

LEVEL = 0.05
RESAMPLES, SEED = 1000, 0
_Score = Callable[[Tensor, Tensor], Tensor]
# Means over questions, by the column's name: the score, whether it is of the true answer law, whether larger is better.
_MEANS: dict[str, tuple[_Score, bool, bool]] = {
    "accuracy": (lambda probs, label: scores.correct(probs, label).double(), False, True),
    "nll": (scores.nll, False, False),
    "brier": (scores.brier, False, False),
    "expected_accuracy": (scores.expected_accuracy, True, True),
    "expected_nll": (scores.expected_nll, True, False),
    "expected_brier": (scores.expected_brier, True, False),
    "expected_calibration_gap": (scores.expected_calibration_gap, True, False),
    "kl": (scores.divergence, True, False),
}
_ECE = f"ece_{FLOOR_BINS}"
TESTED = (*_MEANS, _ECE)  #: Columns whose rows are compared pair by pair.


def best_rows(metric: str, rows: Mapping[str, Sequence[Answers]]) -> set[str]:
    """The rows of a column that are the best or not to be told from it at 5 %.

    A row's value is its mean over seeds. Two rows are compared by the difference of their values over its standard
    error over questions, against a normal law: for a mean over questions by the differences of each question, averaged
    over seeds (Miller 2024, arXiv 2411.00640), for an ECE by a bootstrap of the questions, the same for both rows. Of
    all pairs of a column Holm's procedure rejects some at 5 % together; the best row's pairs that it does not reject
    are ties. The pairs of the best alone would be too few: which row is the best is seen on the same questions, and
    with five equal rows one would be called worse in 9 % of columns.

    Args:
        metric: The column, one of :data:`TESTED`; for any other there are no ties to be known.
        rows: By name the answers of each seed, to the same questions. A row with fewer seeds than another is left out.
            Of a single question nothing is known.
    """
    full = max((len(seeds) for seeds in rows.values()), default=0)
    rows = {name: seeds for name, seeds in rows.items() if len(seeds) == full}
    if metric not in TESTED or len(rows) < 2 or any(len(seeds[0].label) < 2 for seeds in rows.values()):
        return set()
    values, errors, larger = _ece(rows) if metric == _ECE else _means(metric, rows)
    sign = -1 if larger else 1
    names = list(rows)
    best = min(names, key=lambda name: sign * values[name])
    apart = holm({pair: p_value(values[pair[0]] - values[pair[1]], errors[pair]) for pair in errors})
    return {name for name in names if not {(name, best), (best, name)} & apart}


def holm(p_values: Mapping[tuple[str, str], float], level: float = LEVEL) -> set[tuple[str, str]]:
    """The hypotheses that Holm's step-down procedure (1979) rejects, wrongly in one or more at most this often.

    Args:
        p_values: By hypothesis.
        level: The probability, at most, that it rejects one or more that hold.
    """
    rejected = set()
    for left, (pair, p) in zip(range(len(p_values), 0, -1), sorted(p_values.items(), key=lambda i: i[1]), strict=True):
        if p * left > level:
            break
        rejected.add(pair)
    return rejected


_Compared = tuple[dict[str, float], dict[tuple[str, str], float], bool]


def _means(metric: str, rows: Mapping[str, Sequence[Answers]]) -> _Compared:
    """Values of the rows, standard errors of their differences, and whether larger is better, for a mean."""
    score, needs_law, larger = _MEANS[metric]

    def scored(answers: Answers) -> Tensor:
        """The metric of every question, float64 ``[N]``."""
        target = answers.true_probs if needs_law else answers.label
        assert target is not None  # a column of the true answer law is there only where it is known
        return score(answers.probs, target).double()

    by_question = {name: torch.stack([scored(a) for a in seeds]).mean(0) for name, seeds in rows.items()}
    errors = {
        (one, two): float((by_question[one] - by_question[two]).std() / len(by_question[one]) ** 0.5)
        for one, two in combinations(rows, 2)
    }
    return {name: float(values.mean()) for name, values in by_question.items()}, errors, larger


def _ece(rows: Mapping[str, Sequence[Answers]]) -> _Compared:
    """The same for the ECE."""
    count = len(next(iter(rows.values()))[0].label)
    drawn = torch.randint(count, (RESAMPLES, count), generator=torch.Generator().manual_seed(SEED))
    counts = torch.zeros(RESAMPLES, count, dtype=torch.float64).scatter_add_(
        1, drawn, torch.ones(RESAMPLES, count, dtype=torch.float64)
    )
    once = torch.ones(1, count, dtype=torch.float64)
    gaps = {name: [_gaps(answers) for answers in seeds] for name, seeds in rows.items()}

    def eces(name: str, weights: Tensor) -> Tensor:
        """A row's ECE, as a mean over seeds, for weights of the questions ``[draws, N]``."""
        return torch.stack([(weights @ gap).abs().sum(-1) / count for gap in gaps[name]]).mean(0)

    replicates = {name: eces(name, counts) for name in rows}
    errors = {(one, two): float((replicates[one] - replicates[two]).std()) for one, two in combinations(rows, 2)}
    return {name: float(eces(name, once)) for name in rows}, errors, False


def _gaps(answers: Answers) -> Tensor:
    """Whether an answer is right minus its confidence, in the column of its bin, ``[N, bins]``."""
    confidence, correct = scores.confidence(answers.probs), scores.correct(answers.probs, answers.label)
    result = torch.zeros(len(confidence), FLOOR_BINS, dtype=torch.float64)
    index = bin_index(confidence, FLOOR_BINS).long()
    return result.scatter_(1, index[:, None], (correct.double() - confidence)[:, None])


def p_value(difference: float, error: float) -> float:
    """The two-sided p-value of a difference under a normal law; rows that are alike in every question are equal.

    Args:
        difference: Of two rows.
        error: Its standard error.
    """
    if error == 0:
        return 1.0 if difference == 0 else 0.0
    return float(2 * ndtr(-abs(difference) / error))
