"""Rankings against scikit-learn, with ties, weights and their symmetries."""

import pytest
import torch
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve

from bayeslora.metrics import AUROC, Detection, auroc, average_precision, fpr_at_tpr


def scored(decimals: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    score = (torch.randn(500, generator=generator, dtype=torch.float64) * 3).round(decimals=decimals)
    return score, torch.rand(500, generator=generator) < torch.sigmoid(score)


@pytest.mark.parametrize("decimals", [0, 1, 6])
def test_against_scikit_learn(decimals: int) -> None:
    score, positive = scored(decimals)
    assert auroc(score, positive).item() == pytest.approx(roc_auc_score(positive, score), abs=1e-12)
    want = average_precision_score(positive, score)
    assert average_precision(score, positive).item() == pytest.approx(want, abs=1e-12)
    false, true, _ = roc_curve(positive, score)
    assert fpr_at_tpr(score, positive).item() == pytest.approx(false[true >= 0.95].min(), abs=1e-12)


def test_symmetries_of_the_auroc() -> None:
    score, positive = scored(1)
    area = auroc(score, positive).item()
    assert auroc(-score, positive).item() == pytest.approx(1 - area, abs=1e-12)
    assert auroc(score, ~positive).item() == pytest.approx(1 - area, abs=1e-12)
    assert auroc(score.exp(), positive).item() == pytest.approx(area, abs=1e-12)


@pytest.mark.parametrize("statistic", [auroc, average_precision, fpr_at_tpr])
def test_weights_are_repetitions(statistic) -> None:
    score, positive = scored(1)
    weight = torch.randint(4, (3, 500), generator=torch.Generator().manual_seed(1))
    want = [statistic(score.repeat_interleave(w), positive.repeat_interleave(w)) for w in weight]
    assert torch.allclose(statistic(score, positive, weight.double()), torch.stack(want))


def test_ties_count_half_and_one_group_is_no_question() -> None:
    assert auroc(torch.ones(4), torch.tensor([True, False, False, True])).item() == 0.5
    assert auroc(torch.ones(2), torch.tensor([True, True])).isnan()


def test_detection_looks_from_both_sides() -> None:
    """More uncertain is stranger: a detector that is always right, and one that is always wrong."""
    unfamiliar = torch.tensor([False] * 20 + [True] * 5)
    good = {name: value.item() for name, value in Detection()(unfamiliar.double(), unfamiliar).items()}
    assert good == {"auroc": 1.0, "aupr_out": 1.0, "aupr_in": 1.0, "fpr95": 0.0}
    bad = {name: value.item() for name, value in Detection()(-unfamiliar.double(), unfamiliar).items()}
    assert bad == pytest.approx({"auroc": 0.0, "aupr_out": 0.2, "aupr_in": 0.8, "fpr95": 1.0})


def test_fpr_counts_the_strange_that_pass_where_most_familiar_pass() -> None:
    uncertainty = torch.cat([torch.arange(100.0), torch.tensor([50.0, 94.0, 95.0, 200.0])])
    unfamiliar = torch.arange(104) >= 100
    # 95 of the 100 familiar questions lie at or below 94, and two of the four others with them
    assert Detection()(uncertainty, unfamiliar)["fpr95"].item() == 0.5


def test_scores_keep_their_scale_from_batch_to_batch() -> None:
    score, positive = torch.tensor([0.2, 0.9, 1.6, 0.95]), torch.tensor([False, True, True, False])
    metric = AUROC()
    metric.update(score[:2], positive[:2])  # torchmetrics would leave these as they are
    metric.update(score[2:], positive[2:])  # and these through a sigmoid
    assert metric.compute() == auroc(score, positive) == 0.75
