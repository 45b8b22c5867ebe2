"""Every metric says the same of the same questions: in any order, in any batches, on one process or two."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torchmetrics import Metric

from bayeslora import metrics

Arguments = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, ...]]


def with_label(probs: Tensor, label: Tensor, true_probs: Tensor) -> tuple[Tensor, ...]:
    return probs, label


def with_truth(probs: Tensor, label: Tensor, true_probs: Tensor) -> tuple[Tensor, ...]:
    return probs, true_probs


def alone(probs: Tensor, label: Tensor, true_probs: Tensor) -> tuple[Tensor, ...]:
    return (probs,)


def ranked(probs: Tensor, label: Tensor, true_probs: Tensor) -> tuple[Tensor, ...]:
    return torch.special.entr(probs).sum(-1), label == 0


CASES: dict[str, tuple[Callable[[], Metric], Arguments]] = {
    "Accuracy": (metrics.Accuracy, with_label),
    "NLL": (metrics.NLL, with_label),
    "Brier": (metrics.Brier, with_label),
    "Mean": (metrics.Mean, alone),
    "ExpectedAccuracy": (metrics.ExpectedAccuracy, with_truth),
    "ExpectedNLL": (metrics.ExpectedNLL, with_truth),
    "ExpectedBrier": (metrics.ExpectedBrier, with_truth),
    "ExpectedCalibrationGap": (metrics.ExpectedCalibrationGap, with_truth),
    "Divergence": (metrics.Divergence, with_truth),
    "ECE": (metrics.ECE, with_label),
    "MCE": (metrics.MCE, with_label),
    "AdaptiveECE": (metrics.AdaptiveECE, with_label),
    "ClasswiseECE": (lambda: metrics.ClasswiseECE(3), with_label),
    "ECEFloor": (metrics.ECEFloor, alone),
    "AURC": (metrics.AURC, with_label),
    "AccuracyAtCoverage": (lambda: metrics.AccuracyAtCoverage(0.8), with_label),
    "CoverageAtError": (lambda: metrics.CoverageAtError(0.6), with_label),
    "AUROC": (metrics.AUROC, ranked),
    "Detection": (metrics.Detection, ranked),
}


def questions() -> tuple[Tensor, Tensor, Tensor]:
    """Probabilities, a fifth of them tied, with labels and true probabilities."""
    generator = torch.Generator().manual_seed(0)
    probs = torch.randn(101, 3, generator=generator, dtype=torch.float64).mul(2).softmax(-1)
    probs[::5] = probs[0]
    label = torch.randint(3, (101,), generator=generator)
    return probs, label, torch.randn(101, 3, generator=generator, dtype=torch.float64).softmax(-1)


def value(metric: Metric) -> Tensor:
    result = metric.compute()
    return torch.stack(list(result.values())) if isinstance(result, dict) else result


def shuffled_batches(order: Tensor) -> Iterator[Tensor]:
    yield from order.split([1, 7, *[16] * ((len(order) - 8) // 16), (len(order) - 8) % 16])


def at_once(name: str) -> Tensor:
    make, arguments = CASES[name]
    metric = make()
    metric.update(*arguments(*questions()))
    return value(metric)


def test_every_metric_is_here() -> None:
    public = {name for name in metrics.__all__ if isinstance(getattr(metrics, name), type)}
    assert set(CASES) == public - {"Answers"}


@pytest.mark.parametrize("name", CASES)
def test_orders_and_batches_agree(name: str) -> None:
    make, arguments = CASES[name]
    data = questions()
    for seed in range(3):
        metric = make()
        for batch in shuffled_batches(torch.randperm(101, generator=torch.Generator().manual_seed(seed))):
            metric.update(*arguments(*(tensor[batch] for tensor in data)))
        assert torch.allclose(value(metric), at_once(name), atol=1e-13, rtol=0)


def run_rank(rank: int, world: int, folder: str) -> None:
    """Every metric over this rank's share; with ``lopsided`` the first rank has seen nothing."""
    store = f"file://{folder}/store"
    torch.distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=world)
    shares = {"even": torch.arange(101)[rank::world], "lopsided": torch.arange(101 * rank)}
    results: dict[str, Tensor] = {}
    for kind, share in shares.items():
        for name, (make, arguments) in CASES.items():
            metric = make()
            if len(share):
                metric.update(*arguments(*(tensor[share] for tensor in questions())))
            results[f"{kind} {name}"] = value(metric)
    torch.save(results, f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_two_processes_agree_with_one(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(run_rank, (2, str(tmp_path)), nprocs=2)
    for rank in (0, 1):
        results = torch.load(tmp_path / f"{rank}.pt")
        assert len(results) == 2 * len(CASES)
        for key, got in results.items():
            assert torch.allclose(got, at_once(key.split()[1]), atol=1e-13, rtol=0), key
