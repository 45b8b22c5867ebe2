"""What is measured of the members' predictions, on tables whose values are known in closed form."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from bayeslora.metrics.answers import Answers
from bayeslora.results.dynamics import measures

LN2 = math.log(2)


def answers(members: object, label: list[int]) -> Answers:
    """Predictions from members' probabilities ``[N, M, C]``."""
    found = torch.as_tensor(members, dtype=torch.float64)
    options = torch.full((len(found),), found.shape[-1])
    return Answers(found.mean(1), torch.tensor(label), options, members=found)


OPPOSED = [[[1.0, 0.0], [0.0, 1.0]]]  # two members that are sure of different answers
AGREED = [[[0.5, 0.5], [0.5, 0.5]]]


def random(n: int, members: int, seed: int, sharpness: float = 1.0) -> Answers:
    generator = torch.Generator().manual_seed(seed)
    logits = sharpness * torch.randn(n, members, 4, generator=generator, dtype=torch.float64)
    return answers(logits.softmax(-1), torch.randint(4, (n,), generator=generator).tolist())


def test_quality_of_a_hand_made_table() -> None:
    probs = torch.tensor([[0.75, 0.25], [0.75, 0.25], [0.25, 0.75], [0.5, 0.5]], dtype=torch.float64)
    found = measures.quality(probs, torch.tensor([0, 1, 1, 0]))
    assert found["accuracy"] == 0.75
    assert found["nll"] == pytest.approx((2 * -math.log(0.75) - math.log(0.25) + LN2) / 4)
    assert found["brier"] == pytest.approx((2 * 0.125 + 1.125 + 0.5) / 4)
    assert found["ece_15"] == pytest.approx(0.75 * abs(2 / 3 - 0.75) + 0.25 * 0.5)


def test_two_opposed_members_are_all_epistemic_and_two_undecided_all_aleatoric() -> None:
    for members, aleatoric in ((OPPOSED, 0.0), (AGREED, LN2)):
        found = measures.uncertainty(answers(members * 3, [0, 0, 1]))
        wanted = {"total": LN2, "aleatoric": aleatoric, "epistemic": LN2 - aleatoric}
        assert {name: mean for name, (mean, _) in found.items()} == pytest.approx(wanted, abs=1e-12)
        assert all(error == pytest.approx(0, abs=1e-12) for _, error in found.values())
    mixed = measures.uncertainty(answers(OPPOSED + AGREED, [0, 0]))
    assert mixed["aleatoric"] == pytest.approx((LN2 / 2, LN2 / 2))  # sd of {0, ln 2} is ln 2 / sqrt 2, over sqrt 2


def test_one_member_and_the_ensemble() -> None:
    found = measures.one_and_all(answers([[[0.9, 0.1], [0.3, 0.7]], [[0.2, 0.8], [0.4, 0.6]]], [0, 1]))
    assert found["accuracy"] == pytest.approx({"ensemble": 1.0, "member": 0.75, "member_sd": math.sqrt(1 / 8)})
    each = [-(math.log(0.9) + math.log(0.8)) / 2, -(math.log(0.3) + math.log(0.6)) / 2]
    wanted = {
        "ensemble": -(math.log(0.6) + math.log(0.7)) / 2,
        "member": sum(each) / 2,
        "member_sd": np.std(each, ddof=1),
    }
    assert found["nll"] == pytest.approx(wanted)
    assert measures.one_and_all(random(5, 1, 0))["nll"]["member_sd"] is None


@pytest.mark.parametrize("seed", range(3))
def test_averaging_never_hurts_likelihood_nor_brier(seed: int) -> None:
    found = measures.one_and_all(random(50, 4, seed, 3.0))
    for metric in ("nll", "brier"):
        assert found[metric]["ensemble"] < found[metric]["member"]


def test_disagreement_of_three_members() -> None:
    sure = torch.eye(3, dtype=torch.float64)
    choice = torch.tensor([[0, 0, 1], [0, 1, 2], [2, 2, 2], [0, 0, 1]])
    found = measures.disagreement(answers(sure[choice], [0] * 4))
    wanted = torch.tensor([[0, 0.25, 0.75], [0.25, 0, 0.75], [0.75, 0.75, 0]], dtype=torch.float64)
    torch.testing.assert_close(found, wanted)
    assert measures.pairs(found).tolist() == [0.25, 0.75, 0.75]
    assert len(measures.pairs(found[:1, :1])) == 0


def flags(text: str) -> Tensor:
    return torch.tensor([letter == "1" for letter in text])


def test_every_question_is_in_one_cell() -> None:
    found = measures.cells(flags("1100"), flags("1010"))
    assert {name: mask.tolist().index(True) for name, mask in found.items()} == {
        "retained": 0,
        "forgotten": 1,
        "acquired": 2,
        "never": 3,
    }
    assert torch.stack(list(found.values())).sum(0).tolist() == [1] * 4


def test_what_is_kept_and_what_turned() -> None:
    assert measures.retained_fraction(flags("1110"), flags("1001")) == pytest.approx(1 / 3)
    assert measures.retained_fraction(flags("0000"), flags("1001")) is None
    assert measures.changed_fraction(flags("1100"), flags("1010")) == 0.5


def test_subsets_are_all_where_few_and_different_where_many() -> None:
    assert measures.member_subsets(3, 2, 50) == [(0, 1), (0, 2), (1, 2)]
    drawn = measures.member_subsets(20, 10, 30)
    assert len(set(drawn)) == 30
    assert all(len(set(subset)) == 10 and set(subset) <= set(range(20)) for subset in drawn)
    assert drawn == measures.member_subsets(20, 10, 30)


def test_metrics_against_members_end_at_one_and_at_all() -> None:
    given = random(40, 4, 1, 2.0)
    rows = list(measures.against_members(given))
    assert [(row["members"], row["subsets"]) for row in rows] == [(1, 4), (2, 6), (3, 4), (4, 1)]
    whole = measures.one_and_all(given)
    for metric in measures.QUALITY:
        assert rows[0][metric] == pytest.approx(whole[metric]["member"])
        assert rows[0][f"{metric}_sd"] == pytest.approx(whole[metric]["member_sd"])
        assert rows[-1][metric] == pytest.approx(whole[metric]["ensemble"])
        assert rows[-1][f"{metric}_sd"] is None
    assert rows[0]["epistemic"] == pytest.approx(0, abs=1e-12)
    assert rows[-1]["epistemic"] == pytest.approx(float(given.epistemic.mean()))
    likelihoods = [row["nll"] for row in rows]
    assert likelihoods == sorted(likelihoods, reverse=True)  # by Jensen's inequality over subsets


def test_detection_has_the_right_sign_and_its_intervals_hold_the_estimate() -> None:
    sure, unsure = random(200, 3, 2, 6.0), random(150, 3, 3, 0.3)
    found = measures.detection(sure, unsure, resamples=200)
    assert found["total"]["auroc"] > 0.9
    swapped = measures.detection(unsure, sure, resamples=200)
    for score in measures.SCORES:
        assert found[score]["auroc"] + swapped[score]["auroc"] == pytest.approx(1)
        assert found[score]["low"] <= found[score]["auroc"] <= found[score]["high"]
    wanted = float(unsure.epistemic.mean() - sure.epistemic.mean())
    assert found["epistemic_difference"]["difference"] == pytest.approx(wanted)
    error = math.sqrt(float(sure.epistemic.var() / 200 + unsure.epistemic.var() / 150))
    half = (found["epistemic_difference"]["high"] - found["epistemic_difference"]["low"]) / 2
    assert half == pytest.approx(1.96 * error, rel=0.15)


def test_members_that_agree_detect_nothing() -> None:
    found = measures.detection(random(30, 1, 0), random(20, 1, 1, 3.0), resamples=20)
    assert found["epistemic"] == {"auroc": 0.5, "low": 0.5, "high": 0.5}


def test_joint_density_integrates_to_one_and_its_marginals_are_those_of_each() -> None:
    given = random(500, 4, 5, 2.0)
    edges = measures.density_edges([given], 12)
    found = measures.joint_density(given.epistemic, given.total, edges)
    assert found is not None
    wide, high = np.diff(edges[0]), np.diff(edges[1])
    assert float(wide @ found @ high) == pytest.approx(1)
    alone, _ = np.histogram(given.total.numpy(), edges[1], density=True)
    np.testing.assert_allclose(wide @ found, alone)
    assert measures.joint_density(given.epistemic[:0], given.total[:0], edges) is None


def test_joint_density_of_three_points() -> None:
    edges = (np.array([0.0, 1.0, 2.0]), np.array([0.0, 0.5, 1.0]))
    found = measures.joint_density(torch.tensor([0.5, 0.6, 1.5]), torch.tensor([0.1, 0.2, 0.9]), edges)
    np.testing.assert_allclose(found, [[2 / 3 / 0.5, 0], [0, 1 / 3 / 0.5]])
