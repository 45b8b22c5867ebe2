r"""Are the promises of a decision rule kept? Counted over many calibration sets, where the answer law is known.

    bayeslora fit  -c quickstart -c method/swag -c method/temperature \
        -c method/decision --data.labels 700 --data.calibration 200 --trainer.max_epochs 30 \
        --trainer.default_root_dir runs/promises
    bayeslora test -c runs/promises/fit-config.yaml
    python benchmarks/promises.py --run runs/promises --risks 0.1 0.2 0.3

The population is the embedded benchmark's test set as the run predicts it. A calibration set is drawn from it with
replacement, its labels from the true answer law, so that what a threshold or a set does in the population is known
without noise: the error among answers is the mean of 1 - p*(choice), the coverage of sets the mean of p* over them.
The selection part, the run's validation questions, is the same for all sets, as it is in use.

``null``: the same predictions, but every question is answered wrongly with 1.02 times the risk, whatever its score. Any
threshold that is certified there breaks the promise; it is the sharpest test.
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from scipy.stats import binom

from bayeslora.decisions.prediction_sets import METHODS, uniform_noise, with_top
from bayeslora.decisions.rule import DecisionRule, decision_scores, fit_rule, keys_of
from bayeslora.metrics import Answers, clopper_pearson
from bayeslora.results.prediction_file import read_predictions
from bayeslora.streams import generator

RISKS = (0.05, 0.1, 0.2)
DELTAS = (0.1, 0.05)
NULL = 1.02


@dataclass(frozen=True)
class Thresholds:
    """What the thresholds of many calibration sets do in the population.

    Attributes:
        risk: What was promised.
        delta: With which probability it may be broken.
        certified: In how many sets a threshold was certified.
        broken: In how many its error is above the risk.
        seeds: Number of sets.
        coverage: Mean fraction of the population that is answered, none where nothing was certified.
    """

    risk: float
    delta: float
    certified: int
    broken: int
    seeds: int
    coverage: float

    @property
    def limit(self) -> int:
        """The most broken promises that are no surprise (99 %) where the rate is just delta."""
        return int(binom.ppf(0.99, self.seeds, self.delta))


@dataclass(frozen=True)
class Sets:
    """What the prediction sets of many calibration sets do in the population.

    Attributes:
        method: Kind of set.
        coverage: Probability that a set holds the answer, for each calibration set.
        served: The same where empty sets are given the most probable option.
        size: Options in a set on average, as served.
    """

    method: str
    coverage: Sequence[float]
    served: Sequence[float]
    size: Sequence[float]

    @property
    def error(self) -> float:
        """Standard error of the mean coverage."""
        return statistics.stdev(self.coverage) / math.sqrt(len(self.coverage))


def drawn(population: Answers, questions: int, seed: int) -> Answers:
    """A calibration set: questions with replacement, labels from the true law."""
    assert population.true_probs is not None
    noise = generator(seed, "calibration set")
    chosen = population[torch.randint(len(population), (questions,), generator=noise)]
    assert chosen.true_probs is not None
    return replace(chosen, label=torch.multinomial(chosen.true_probs, 1, generator=noise).squeeze(1))


def at_null(answers: Answers, risk: float) -> Answers:
    """The same predictions, each wrong with 1.02 times the risk."""
    wrong = NULL * risk
    choice = torch.nn.functional.one_hot(answers.probs.argmax(-1), answers.probs.shape[1]).double()
    others = (1 - choice) * (torch.arange(answers.probs.shape[1]) < answers.options[:, None])
    law = choice * (1 - wrong) + others * wrong / others.sum(-1, keepdim=True)
    label = torch.multinomial(law, 1, generator=generator("null", len(answers))).squeeze(1)
    return replace(answers, true_probs=law, label=label)


def population_error(rule: DecisionRule, population: Answers, scores: dict[str, torch.Tensor]) -> tuple[float, float]:
    """Fraction of the population that is answered, and the error among these answers."""
    best = rule.promise.best
    if best is None:
        return 0.0, 0.0
    assert population.true_probs is not None
    given = scores[best.score] <= best.limit
    wrong = 1 - population.true_probs.gather(-1, population.probs.argmax(-1)[:, None]).squeeze(-1)
    return float(given.double().mean()), float(wrong[given].mean()) if given.any() else 0.0


def thresholds(
    population: Answers, selection: Answers, questions: int, risk: float, delta: float, seeds: int
) -> Thresholds:
    """Fit a threshold on each of many calibration sets."""
    scores = decision_scores(population)
    found = []
    for seed in range(seeds):
        rule = fit_rule(selection, drawn(population, questions, seed), "any", (risk,), risk, delta)
        found.append(population_error(rule, population, scores))
    certified = sum(coverage > 0 for coverage, _ in found)
    broken = sum(error > risk for _, error in found)
    return Thresholds(risk, delta, certified, broken, seeds, statistics.mean(coverage for coverage, _ in found))


def best_coverage(population: Answers, risk: float) -> float:
    """The largest part of the population that any of the three scores could answer at this error."""
    assert population.true_probs is not None
    wrong = 1 - population.true_probs.gather(-1, population.probs.argmax(-1)[:, None]).squeeze(-1)
    place = torch.arange(1, len(wrong) + 1)
    reached = []
    for score in decision_scores(population).values():
        errors = wrong[score.argsort()].cumsum(0) / place
        reached.append(int((errors <= risk).nonzero().max()) + 1 if (errors <= risk).any() else 0)
    return max(reached) / len(wrong)


def prediction_sets(population: Answers, selection: Answers, questions: int, alpha: float, seeds: int) -> list[Sets]:
    """Fit every kind of set on each of many calibration sets."""
    assert population.true_probs is not None
    law, noise = population.true_probs, uniform_noise(keys_of(population))
    found: dict[str, list[tuple[float, float, float]]] = {method: [] for method in METHODS}
    for seed in range(seeds):
        rule = fit_rule(selection, drawn(population, questions, seed), "any", alpha=alpha)
        for each in rule.sets:
            sets = each.sets(population.probs, population.options, noise)
            given = with_top(sets, population.probs)
            covered, served = ((law * kind).sum(-1).mean().item() for kind in (sets, given))
            found[each.method].append((covered, served, given.sum(-1).double().mean().item()))
    return [Sets(method, *zip(*numbers, strict=True)) for method, numbers in found.items()]


def thresholds_table(rows: Sequence[tuple[str, float, Thresholds]]) -> str:
    """The counts in Markdown, with exact intervals."""
    lines = [
        "| answers | risk | delta | certified | broken | share [95 %] | limit | answered | at best |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for name, best, row in rows:
        low, high = clopper_pearson(row.broken, row.seeds)
        share = f"{row.broken / row.seeds:.3f} [{low:.3f}, {high:.3f}]"
        lines.append(
            f"| {name} | {row.risk:g} | {row.delta:g} | {row.certified} of {row.seeds} | {row.broken} | {share} "
            f"| {row.limit} | {row.coverage:.3f} | {best:.3f} |"
        )
    return "\n".join(lines)


def sets_table(rows: Sequence[Sets], alpha: float) -> str:
    """Coverage and size in Markdown."""
    lines = ["| sets | asked | coverage ± 2 SE | as served | options in a set |", "|---|--:|--:|--:|--:|"]
    for row in rows:
        coverage, served, size = (statistics.mean(values) for values in (row.coverage, row.served, row.size))
        lines.append(
            f"| {row.method} | {1 - alpha:g} | {coverage:.4f} ± {2 * row.error:.4f} | {served:.4f} | {size:.3f} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Print both tables for a run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True, help="a run that was tested with method/decision")
    parser.add_argument("--seeds", type=int, default=200, help="calibration sets (200)")
    parser.add_argument("--questions", type=int, default=499, help="questions in each (499)")
    parser.add_argument("--risks", type=float, nargs="+", default=RISKS, help="error rates to promise (0.05 0.1 0.2)")
    parser.add_argument("--alpha", type=float, default=0.1, help="share of sets that may miss the answer (0.1)")
    given = parser.parse_args()
    population = next(iter(read_predictions(given.run / "test" / "predictions.parquet").datasets.values()))
    selection = read_predictions(given.run / "posterior" / "calibration.parquet").datasets["validation"]
    rows = []
    for delta in DELTAS:
        for risk in given.risks:
            real = thresholds(population, selection, given.questions, risk, delta, given.seeds)
            rows.append(("the run's", best_coverage(population, risk), real))
            law = at_null(population, risk)
            null = thresholds(law, at_null(selection, risk), given.questions, risk, delta, given.seeds)
            rows.append(("null", 0.0, null))
    print(thresholds_table(rows))
    print()
    print(sets_table(prediction_sets(population, selection, given.questions, given.alpha, given.seeds), given.alpha))


if __name__ == "__main__":
    main()
