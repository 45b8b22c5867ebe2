"""What ``metrics.json`` says is what the metrics and scikit-learn say of the same predictions."""

import json
import math
from dataclasses import replace

import pytest
import torch
from scipy.stats import spearmanr
from sklearn.metrics import roc_auc_score

from bayeslora.errors import UsageError
from bayeslora.metrics import ECE, UNKNOWN, Answers, ece_floor, evaluate
from bayeslora.types import Predictive


def answers(n: int, sharpness: float = 2.0, members: int = 4, seed: int = 0) -> Answers:
    generator = torch.Generator().manual_seed(seed)
    logits = sharpness * torch.randn(members, n, 4, generator=generator, dtype=torch.float64)
    label = torch.randint(4, (n,), generator=generator)
    made = Answers.from_predictive(Predictive.from_logits(logits), label)
    return replace(made, example_id=[f"q{i}" for i in range(n)])


def test_numbers_of_a_dataset() -> None:
    made = answers(300)
    metrics = evaluate({"arc": made}, "swag", 3)
    assert (metrics["method"], metrics["seed"], metrics["n_members"], metrics["ood"]) == ("swag", 3, 4, {})
    numbers = metrics["datasets"]["arc"]
    assert numbers["n"] == 300
    assert numbers["accuracy"] == (made.probs.argmax(-1) == made.label).double().mean().item()
    assert numbers["nll"] == pytest.approx(-made.probs[torch.arange(300), made.label].log().mean().item())
    for bins in (10, 15, 20):
        assert numbers[f"ece_{bins}"] == ECE(bins)(made.probs, made.label).item()
    assert numbers["ece_15_floor"] == ece_floor(made.probs.amax(-1), 15).item()
    assert numbers["total"] == pytest.approx(numbers["aleatoric"] + numbers["epistemic"])
    wrong = made.probs.argmax(-1) != made.label
    assert numbers["wrong_auroc_total"] == pytest.approx(roc_auc_score(wrong, made.total))
    assert not any(name.startswith("expected") for name in numbers)
    for name, (low, high) in numbers["interval_95"].items():
        assert 0 <= low < numbers[name] < high


def test_detection_is_against_the_first_dataset() -> None:
    sets = {"arc": answers(200, 3.0), "law": answers(100, 1.0, seed=1), "far": answers(50, 0.2, seed=2)}
    ood = evaluate(sets, "swag", 3)["ood"]
    assert list(ood) == ["law", "far"]
    for name in ood:
        truth = [0] * 200 + [1] * len(sets[name])
        for score in ("total", "aleatoric"):
            values = torch.cat([getattr(sets["arc"], score), getattr(sets[name], score)])
            got = ood[name][score]
            assert got["auroc"] == pytest.approx(roc_auc_score(truth, values))
            assert got["interval_95"]["auroc"][0] <= got["auroc"] <= got["interval_95"]["auroc"][1]
    assert ood["far"]["total"]["auroc"] > ood["law"]["total"]["auroc"] > 0.5


def test_known_probabilities_give_expectations() -> None:
    made = answers(200)
    told = replace(made, true_probs=made.probs)
    numbers = evaluate({"arc": told}, "mle", 0, intervals=False)["datasets"]["arc"]
    assert numbers["kl"] == pytest.approx(0, abs=1e-12)
    assert numbers["expected_nll"] == pytest.approx(numbers["total"])
    assert numbers["expected_accuracy"] == pytest.approx(numbers["mean_confidence"])
    assert numbers["expected_calibration_gap"] == pytest.approx(0, abs=1e-12)
    assert "interval_95" not in numbers


def test_uncertainty_is_ranked_by_the_true_entropy() -> None:
    made = replace(answers(200), true_probs=answers(200, seed=5).probs)
    entropy = torch.special.entr(made.true_probs).sum(-1)
    numbers = evaluate({"arc": made}, "swag", 0, intervals=False)["datasets"]["arc"]
    for name in ("total", "aleatoric", "epistemic"):
        expected = spearmanr(getattr(made, name), entropy).statistic
        assert numbers[f"entropy_correlation_{name}"] == pytest.approx(expected, abs=1e-6)
    certain = replace(made, true_probs=torch.eye(4, dtype=torch.float64)[made.label])
    numbers = evaluate({"arc": certain}, "swag", 0, intervals=False)["datasets"]["arc"]
    assert numbers["entropy_correlation_total"] is None


def test_kept_logits_give_the_mass_outside() -> None:
    logits = torch.randn(2, 30, 4)
    predictive = Predictive.from_logits(logits, logits.logsumexp(-1) + math.log(2))
    made = Answers.from_predictive(predictive, torch.zeros(30))
    numbers = evaluate({"arc": made}, "mle", 0, intervals=False)["datasets"]["arc"]
    assert numbers["outside_mass"] == pytest.approx(0.5, abs=1e-6)


def test_what_is_not_defined_is_none_and_json_stays_json() -> None:
    made = answers(30)
    right = replace(made, label=made.probs.argmax(-1))
    metrics = evaluate({"arc": right, "law": made}, "mle", None)
    assert metrics["datasets"]["arc"]["wrong_auroc_total"] is None
    json.loads(json.dumps(metrics, allow_nan=False))


def test_unknown_labels_are_refused() -> None:
    made = answers(30)
    made.label[:3] = UNKNOWN
    with pytest.raises(UsageError, match="3 of 30 questions of arc have no label"):
        evaluate({"arc": made}, "mle", 0)


def test_identical_members_leave_nothing_to_rank_by() -> None:
    made = answers(100, members=1)
    same = replace(made, members=made.members.expand(-1, 7, -1).contiguous())
    other = answers(50, members=1, seed=3)
    other = replace(other, members=other.members.expand(-1, 7, -1).contiguous())
    metrics = evaluate({"arc": same, "law": other}, "ensemble", 0, intervals=False)
    assert metrics["datasets"]["arc"]["epistemic"] == 0
    assert metrics["ood"]["law"]["epistemic"]["auroc"] == 0.5
