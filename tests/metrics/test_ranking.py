"""AUROC against scikit-learn, with ties, and its symmetries."""

import pytest
import torch
from sklearn.metrics import roc_auc_score

from bayeslora.metrics import AUROC, auroc


@pytest.mark.parametrize("decimals", [1, 6])
def test_against_scikit_learn(decimals: int) -> None:
    generator = torch.Generator().manual_seed(0)
    score = (torch.randn(500, generator=generator, dtype=torch.float64) * 3).round(decimals=decimals)
    positive = torch.rand(500, generator=generator) < torch.sigmoid(score)
    want = roc_auc_score(positive, score)
    assert auroc(score, positive).item() == pytest.approx(want, abs=1e-12)
    assert auroc(-score, positive).item() == pytest.approx(1 - want, abs=1e-12)
    assert auroc(score, ~positive).item() == pytest.approx(1 - want, abs=1e-12)
    assert auroc(score.exp(), positive).item() == pytest.approx(want, abs=1e-12)


def test_ties_count_half_and_one_group_is_no_question() -> None:
    assert auroc(torch.ones(4), torch.tensor([True, False, False, True])).item() == 0.5
    assert auroc(torch.ones(2), torch.tensor([True, True])).isnan()


def test_scores_keep_their_scale_from_batch_to_batch() -> None:
    score, positive = torch.tensor([0.2, 0.9, 1.6, 0.95]), torch.tensor([False, True, True, False])
    metric = AUROC()
    metric.update(score[:2], positive[:2])  # torchmetrics would leave these as they are
    metric.update(score[2:], positive[2:])  # and these through a sigmoid
    assert metric.compute() == auroc(score, positive) == 0.75
