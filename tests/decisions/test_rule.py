"""A rule decides each question as if it were alone, and comes back from its file bit for bit."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from bayeslora.decisions.rule import DecisionRule, describe, fit_rule
from bayeslora.decisions.rule_file import load_rule, save_rule
from bayeslora.errors import UsageError
from bayeslora.files import read_record
from bayeslora.metrics import UNKNOWN, Answers
from bayeslora.types import Predictive


def answers(n: int, seed: int, members: int = 3, options: int = 4, sharpness: float = 4.0) -> Answers:
    """Members that differ, and labels drawn from what they say on average."""
    generator = torch.Generator().manual_seed(seed)
    common = sharpness * torch.randn(1, n, options, generator=generator, dtype=torch.float64)
    spread = torch.randn(members, n, options, generator=generator, dtype=torch.float64) * (members > 1)
    predictive = Predictive.from_logits(common + spread)
    label = torch.multinomial(predictive.probs, 1, generator=generator).squeeze(1)
    keys = torch.arange(n) + 10_000 * seed
    return replace(Answers.from_predictive(predictive, label), key=keys, example_id=[f"q{i}" for i in keys.tolist()])


@pytest.fixture(scope="module")
def rule() -> DecisionRule:
    return fit_rule(answers(200, 0), answers(600, 1), "lora+swag", risk=0.1)


def test_it_answers_below_its_threshold_and_says_why_it_does_not(rule: DecisionRule) -> None:
    new = answers(300, 2)
    decided = rule(new)
    best = rule.promise.best
    assert best is not None
    scores = {"one_minus_confidence": 1 - new.probs.amax(1), "total": new.total, "epistemic": new.epistemic}
    assert torch.equal(decided.abstain, scores[best.score] > best.limit)
    assert 0 < int(decided.abstain.sum()) < 300
    for abstain, reason in zip(decided.abstain.tolist(), decided.reason, strict=True):
        assert bool(reason) == abstain
    first = decided.reason[int(decided.abstain.nonzero()[0])]
    assert "is" in first
    assert f"above {best.limit:.4g}" in first
    assert torch.equal(decided.choice, new.probs.argmax(1))
    assert decided.sets.gather(1, decided.choice[:, None]).all()


def test_a_rule_says_no_more_than_it_promises() -> None:
    first, *_, last = describe(fit_rule(answers(20, 0), None, "mle", delta=4e-4, alpha=4e-4))
    assert "with confidence 99.9 %" in first
    assert "hold the right option in 99.9 %" in last


@pytest.mark.parametrize("set_method", ["lac", "aps", "raps"])
def test_a_question_is_decided_alone_as_in_a_batch(rule: DecisionRule, set_method: str) -> None:
    new, rule = answers(60, 3), rule.at(set_method=set_method)
    together = rule(new)
    for row in (0, 17, 59):
        alone = rule(new[torch.tensor([row])])
        assert alone.sets[0].tolist() == together.sets[row].tolist()
        assert (alone.abstain[0], alone.reason[0]) == (together.abstain[row], together.reason[row])


def test_a_predictive_is_decided_like_its_answers(rule: DecisionRule) -> None:
    logits = torch.randn(3, 20, 4, generator=torch.Generator().manual_seed(4))
    predictive, keys = Predictive.from_logits(logits), [f"k{i}" for i in range(20)]
    one, other = rule(predictive, keys), rule(Answers.from_predictive(predictive), keys)
    assert torch.equal(one.sets, other.sets)
    assert one.reason == other.reason


def test_where_nothing_was_certified_nothing_is_answered() -> None:
    rule = fit_rule(answers(40, 0), answers(40, 1), "mle", risk=0.02)
    decided = rule(answers(10, 2))
    assert decided.abstain.all()
    assert all(reason.startswith("no threshold: 2 % with confidence 90 % needs at least") for reason in decided.reason)


def test_without_a_calibration_part_the_promise_is_approximate() -> None:
    rule = fit_rule(answers(300, 0), None, "mle")
    assert not rule.exact
    assert rule.calibration == rule.selection == 300
    assert all("approximate" in line for line in describe(rule))
    assert not any("approximate" in line for line in describe(fit_rule(answers(99, 0), answers(99, 1), "mle")))


def test_one_network_of_two_options_has_one_test_at_the_whole_delta() -> None:
    rule = fit_rule(answers(200, 0, members=1, options=2), answers(500, 1, members=1, options=2), "mle", risk=0.1)
    assert [(t.score, t.delta) for t in rule.promise.thresholds] == [("one_minus_confidence", 0.1)]


def test_other_risks_and_sets_are_those_it_was_fitted_for(rule: DecisionRule) -> None:
    assert rule.at(0.05).promise.risk == 0.05
    assert rule.at(set_method="aps").set_rule.method == "aps"
    with pytest.raises(UsageError, match=r"risk is 0.03; allowed: 0.02, 0.05, 0.1"):
        rule.at(0.03)
    with pytest.raises(UsageError, match="set_method is 'x'; allowed: lac, aps, raps"):
        rule.at(set_method="x")


def test_the_file_gives_it_back(rule: DecisionRule, tmp_path: Path) -> None:
    all_answered = fit_rule(answers(300, 0, sharpness=30.0), answers(300, 1, sharpness=30.0), "mle", risk=0.1)
    assert any(math.isinf(t.limit) for p in all_answered.promises for t in p.thresholds)
    for made in (rule, all_answered):
        save_rule(made, tmp_path / "posterior" / "decision.json", predictions="abc")
        assert load_rule(tmp_path / "posterior" / "decision.json") == made
        text = (tmp_path / "posterior" / "decision.json").read_text()
        assert "Infinity" not in text
        assert json.loads(text)["schema"] == 1


def test_files_that_cannot_be_read_are_refused_in_one_line(rule: DecisionRule, tmp_path: Path) -> None:
    file = tmp_path / "decision.json"
    with pytest.raises(UsageError, match="no decision rule at"):
        load_rule(file)
    save_rule(rule, file)
    record = read_record(file, "")  # without its checksum
    for text, message in (
        (file.read_text()[:100], "is damaged"),
        (json.dumps({**record, "schema": 2}), "has schema 2; this version reads schema 1"),
        (json.dumps({k: v for k, v in record.items() if k != "sets"}), "is damaged: KeyError 'sets'"),
    ):
        file.write_text(text)
        with pytest.raises(UsageError, match=message) as refusal:
            load_rule(file)
        assert "\n" not in str(refusal.value)


def test_what_cannot_be_fitted_is_refused() -> None:
    made = answers(30, 0)
    unlabelled = replace(made, label=torch.full((30,), UNKNOWN))
    with pytest.raises(UsageError, match="labelled questions"):
        fit_rule(made, unlabelled, "mle")
    for name in ("delta", "alpha", "risk"):
        with pytest.raises(UsageError, match=f"{name} is 1; allowed: above 0 and below 1"):
            fit_rule(made, made, "mle", **{name: 1})
