"""The other calibration errors against closed forms and plain loops."""

import numpy as np
import pytest
import torch
from torchmetrics.functional.classification import multiclass_calibration_error

from bayeslora.metrics import ECE, MCE, AdaptiveECE, ClasswiseECE


def questions(n: int = 900, options: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    probs = torch.randn(n, options, generator=generator, dtype=torch.float64).mul(1.5).softmax(-1)
    return probs, torch.randint(options, (n,), generator=generator)


def two_options(confidence: list[float]) -> torch.Tensor:
    p = torch.tensor(confidence, dtype=torch.float64)
    return torch.stack([p, 1 - p], dim=-1)


def test_calibrated_bins_have_no_error() -> None:
    probs = two_options([0.75] * 8 + [0.875] * 8)
    label = torch.tensor([0] * 6 + [1] * 2 + [0] * 7 + [1])
    for metric in (ECE(10), MCE(10), AdaptiveECE(2), ClasswiseECE(2, 10)):
        assert metric(probs, label).item() == pytest.approx(0, abs=1e-15)


def test_mce_is_the_worst_bin_and_torchmetrics_agrees() -> None:
    probs, label = questions()
    theirs = multiclass_calibration_error(probs, label, num_classes=4, n_bins=15, norm="max")
    assert MCE(15)(probs, label).item() == pytest.approx(theirs.item(), abs=1e-6)
    one_bad = two_options([0.9] * 9 + [0.6])
    assert MCE(10)(one_bad, torch.tensor([0] * 9 + [1])).item() == pytest.approx(0.6)


def test_adaptive_bins_hold_equally_many() -> None:
    probs, label = questions()
    confidence, right = probs.amax(-1).numpy(), (probs.argmax(-1) == label).numpy().astype(float)
    order = np.argsort(-confidence)
    parts = np.array_split(order, 15)
    want = sum(abs(right[part].mean() - confidence[part].mean()) * len(part) for part in parts) / len(order)
    assert {len(part) for part in parts} == {60}
    assert AdaptiveECE(15)(probs, label).item() == pytest.approx(want, abs=1e-12)


def test_adaptive_bins_do_not_depend_on_the_order_of_ties() -> None:
    probs = two_options([0.8] * 6 + [0.6] * 4)
    label = torch.tensor([0, 1, 0, 1, 1, 0, 1, 0, 0, 0])
    values = set()
    for seed in range(5):
        order = torch.randperm(10, generator=torch.Generator().manual_seed(seed))
        values.add(round(AdaptiveECE(3)(probs[order], label[order]).item(), 14))
    # of 10 questions in bins of 4, 3 and 3: accuracy 1/2 where it says 0.8, 3/4 where it says 0.6
    assert values == {round((4 * 0.3 + abs(2 * -0.3 + 0.15) + 3 * 0.15) / 10, 14)}


def test_few_questions_have_a_bin_each() -> None:
    assert AdaptiveECE(15)(two_options([0.8, 0.6]), torch.tensor([0, 1])).item() == pytest.approx((0.2 + 0.6) / 2)


def test_classwise_error_is_that_of_every_option_alone() -> None:
    probs, label = questions()
    want = 0.0
    for c in range(4):
        p, right = probs[:, c].numpy(), (label == c).numpy().astype(float)
        bins = np.ceil(p * 10).astype(int)
        want += sum(abs((right - p)[bins == b].sum()) for b in np.unique(bins)) / len(p) / 4
    assert ClasswiseECE(4, 10)(probs, label).item() == pytest.approx(want, abs=1e-12)


def test_options_that_are_not_there_add_nothing_to_a_sum() -> None:
    probs, label = questions(options=3)
    padded = torch.nn.functional.pad(probs, (0, 1))
    assert ClasswiseECE(4, 10)(padded, label).item() == pytest.approx(ClasswiseECE(3, 10)(probs, label).item() * 3 / 4)


def test_errors_of_short_batches_are_not_averaged() -> None:
    """Averaging the ECE of batches of 8 shows a calibrated predictor as badly wrong."""
    generator = torch.Generator().manual_seed(0)
    probs = torch.randn(4000, 5, generator=generator, dtype=torch.float64).mul(2).softmax(-1)
    label = torch.multinomial(probs, 1, generator=generator).squeeze(1)
    metric = ECE(15)
    by_batch = [metric(p, y).item() for p, y in zip(probs.split(8), label.split(8), strict=True)]
    assert metric.compute().item() == pytest.approx(ECE(15)(probs, label).item(), abs=1e-12)
    assert np.mean(by_batch) > 5 * metric.compute().item()
