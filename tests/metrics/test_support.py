"""Options, options and rest, whole vocabulary: merging cells loses uncertainty and never makes any."""

import pytest
import torch

from bayeslora.metrics.answers import Answers
from bayeslora.metrics.support import answers_with_rest, whole_vocabulary, with_rest
from bayeslora.types import Predictive


def vocabulary(scale: float = 1.0) -> torch.Tensor:
    """Logits ``[S, B, V]`` of which the first five belong to the options."""
    return scale * torch.randn(4, 30, 50, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_cells_are_the_options_probabilities_and_what_is_left() -> None:
    logits = vocabulary()
    cells = with_rest(logits[..., :5], logits.logsumexp(-1)).exp()
    probs = logits.softmax(-1)
    torch.testing.assert_close(cells[..., :5], probs[..., :5])
    torch.testing.assert_close(cells[..., 5], probs[..., 5:].sum(-1))


def test_merged_cells_are_never_more_uncertain() -> None:
    logits = vocabulary(2.0)
    kept = Predictive.from_logits(logits[..., :5], logits.logsumexp(-1))
    cells, whole = answers_with_rest(Answers.from_predictive(kept)), whole_vocabulary(logits)
    for measure in ("total", "aleatoric", "epistemic"):
        assert (getattr(cells, measure) <= getattr(whole, measure) + 1e-12).all()
        assert (getattr(cells, measure) < getattr(whole, measure) - 1e-3).any()


def test_peaked_rows_in_single_precision_have_no_negative_rest() -> None:
    """One less the sum of rounded probabilities is negative now and then; this is not."""
    logits = vocabulary(12.0).float()
    logits[..., 0] += 40
    logsumexp = logits.logsumexp(-1)
    naive = 1 - (logits[..., :5] - logsumexp[..., None]).exp().sum(-1)
    assert (naive < 0).any()
    cells = with_rest(logits[..., :5], logsumexp)
    assert not cells.isnan().any()
    assert (cells <= 0).all()
    predictive = answers_with_rest(Answers.from_predictive(Predictive.from_logits(logits[..., :5], logsumexp)))
    assert predictive.total.isfinite().all()
    assert (predictive.epistemic >= 0).all()


def test_absent_options_have_no_cell() -> None:
    logits = vocabulary()
    options = logits[..., :5].clone()
    options[..., 4] = -torch.inf
    cells = with_rest(options, logits.logsumexp(-1)).exp()
    assert (cells[..., 4] == 0).all()
    torch.testing.assert_close(cells[..., 5], 1 - logits.softmax(-1)[..., :4].sum(-1))


def test_what_was_not_kept_is_missed() -> None:
    with pytest.raises(ValueError, match="log-sum-exp"):
        answers_with_rest(Answers.from_predictive(Predictive.from_logits(vocabulary()[..., :5])))
