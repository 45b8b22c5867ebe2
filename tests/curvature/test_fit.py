"""The full Gauss-Newton posterior against dense matrices, its limits, bounds and invariances; stages that resume."""

from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from bayeslora.curvature.fit import _SMALL, _SMALL_ON_GPU, _announce, fit_full
from bayeslora.curvature.jacobian import contrast_jacobian
from bayeslora.curvature.rows import select_questions
from bayeslora.errors import RunError, UsageError
from bayeslora.models.answer_model import AnswerModel
from bayeslora.posteriors.laplace.fit import Prior
from bayeslora.posteriors.laplace.shards import DiskShards, check_disk
from bayeslora.posteriors.laplace.softmax import softmax_root
from bayeslora.types import AnswerBatch, GaussianPosterior
from tests.helpers.batches import label_token_batch
from tests.helpers.laplace_tasks import TARGETS, batches, dense, rows, task
from tests.helpers.models import exact

TIGHT = {"atol": 1e-10, "rtol": 1e-9}
TEST = label_token_batch([8, 5], [4, 3], 3)


@pytest.fixture
def model(llama: str) -> AnswerModel:
    return exact(llama, TARGETS)


def posterior(model: AnswerModel, train: list[AnswerBatch], prior: Prior, **options: Any) -> GaussianPosterior:
    return fit_full(task(model, train, **options)).choose(prior)[0]


def covariance(model: AnswerModel, fitted: GaussianPosterior, batch: AnswerBatch = TEST) -> Tensor:
    return fitted.logit_covariance(contrast_jacobian(model, batch, dtype=torch.float64)[1])


def by_matrix(model: AnswerModel, gauss_newton: Tensor, prior: Tensor, batch: AnswerBatch = TEST) -> Tensor:
    jacobian = rows(model, batch)[1]
    return torch.einsum("ncp,pq,ndq->ncd", jacobian, torch.linalg.inv(gauss_newton + prior.diag()), jacobian)


@pytest.mark.parametrize("precision", [0.05, 1.0, 30.0])
def test_covariance_evidence_and_gamma_are_those_of_the_dense_matrix(model: AnswerModel, precision: float) -> None:
    fitted, choice, report = fit_full(task(model, batches())).choose(Prior(precision))
    gauss_newton = dense(model, batches())
    prior = torch.full((len(gauss_newton),), precision, dtype=torch.float64)
    expected = by_matrix(model, gauss_newton, prior)
    torch.testing.assert_close(covariance(model, fitted), expected, atol=1e-10 * expected.abs().max().item(), rtol=1e-9)
    eigenvalues = torch.linalg.eigvalsh(gauss_newton).clamp(min=0)
    square = sum(value.detach().square().sum() for value in model.trainable().values())
    likelihood = -sum(torch.nn.functional.cross_entropy(model(b).logits, b.label, reduction="sum") for b in batches())
    log_det = torch.linalg.slogdet(gauss_newton + prior.diag())[1] - prior.log().sum()
    evidence = likelihood - 0.5 * precision * square - 0.5 * log_det
    assert report["log_evidence"] == pytest.approx(evidence.item(), rel=1e-10)
    assert report["gamma"]["all"] == pytest.approx((eigenvalues / (eigenvalues + precision)).sum().item(), rel=1e-9)
    assert report["m"] == 3 + 2 + 4 + 2 + 3
    assert choice.precisions.tolist() == [precision]


@pytest.mark.parametrize(("sites", "groups"), [("all", "factor"), ("all", "cell"), ("late", "depth"), ("last", "one")])
def test_groups_and_sites_are_those_of_the_dense_matrix(model: AnswerModel, sites: str, groups: str) -> None:
    fit = fit_full(task(model, batches(), [TEST]))
    fitted, choice, report = fit.choose(Prior("evidence", subset_of_weights=sites, groups=groups))
    sizes = {name: parameter.numel() for name, parameter in model.trainable().items()}
    precision = torch.cat([torch.full((n,), fitted.precision.get(name, 0.0)) for name, n in sizes.items()]).double()
    used = precision > 0
    jacobian = rows(model, TEST)[1][:, :, used]
    inverse = torch.linalg.inv(dense(model, batches())[used][:, used] + precision[used].diag())
    expected = torch.einsum("ncp,pq,ndq->ncd", jacobian, inverse, jacobian)
    torch.testing.assert_close(covariance(model, fitted), expected, atol=1e-6 * expected.abs().max().item(), rtol=1e-6)
    curvature = fit.curvature({name: list(cells) for name, cells in report["groups"].items()})
    torch.testing.assert_close(curvature.covariance(choice.precisions)[:, :3], expected, atol=1e-7, rtol=1e-6)
    for name, value in report["precision"].items():
        assert value * report["squared_distance"][name] == pytest.approx(report["gamma"][name], rel=1e-6)


def test_a_choice_of_sites_is_a_fit_to_them_alone(model: AnswerModel) -> None:
    chosen = posterior(model, batches(), Prior(0.7, subset_of_weights="A"))
    for name, parameter in model.trainable().items():
        parameter.requires_grad_(".lora_A." in name)
    alone = posterior(model, batches(), Prior(0.7))
    torch.testing.assert_close(covariance(model, chosen), covariance(model, alone), **TIGHT)


def test_neither_padding_nor_batches_nor_their_order_matter(model: AnswerModel) -> None:
    prior = Prior("evidence")
    expected = covariance(model, posterior(model, batches(), prior))
    singles = [select_questions(b, torch.arange(len(b)) == i) for b in batches(extra_padding=4) for i in range(len(b))]
    for train in (batches(extra_padding=6), batches()[::-1], singles):
        torch.testing.assert_close(covariance(model, posterior(model, train, prior)), expected, **TIGHT)


def test_the_order_of_the_options_does_not_matter(model: AnswerModel) -> None:
    batch = label_token_batch([5, 9, 7], [4, 4, 4], 1)
    order = torch.tensor([2, 0, 3, 1])
    permuted = replace(batch, answer_ids=batch.answer_ids[:, order])
    plain, other = (fit_full(task(model, [one])).curvature({"all": ["late.A", "last.A"]}) for one in (batch, permuted))
    torch.testing.assert_close(plain.eigenvalues(), other.eigenvalues(), **TIGHT)


def test_a_long_decomposition_is_announced(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bayeslora.curvature.fit._SMALL", 4)
    monkeypatch.setattr("bayeslora.curvature.fit._LONG", 0.0)
    _announce(torch.eye(4, dtype=torch.float64)[None])
    assert capsys.readouterr().out == ""
    _announce(torch.eye(40, dtype=torch.float64)[None])
    assert "eigendecomposition of 40 rows will take about" in capsys.readouterr().out


def test_on_a_gpu_a_larger_one_is_timed_and_not_the_first() -> None:
    """A small one leaves a GPU idle, and its first call loads libraries: both make the estimate far too high."""

    class OnGPU(torch.Tensor):
        @property
        def is_cuda(self) -> bool:  # type: ignore[override]
            return True

    sizes: list[int] = []
    plain = torch.linalg.eigh
    with patch.object(torch.linalg, "eigh", lambda matrix: sizes.append(len(matrix)) or plain(matrix)):
        for size, expected in ((600, []), (700, [64, 640])):
            with patch("bayeslora.curvature.fit._SMALL_ON_GPU", 640):
                _announce(torch.zeros(1, size, size, dtype=torch.float64).as_subclass(OnGPU))
            assert sizes == expected
    assert _SMALL_ON_GPU > 4 * _SMALL


def test_data_twice_over_doubles_the_curvature_and_never_widens(model: AnswerModel) -> None:
    once, twice = (posterior(model, train, Prior(1.0)) for train in (batches(), batches() + batches()))
    prior = torch.ones(len(dense(model, batches())), dtype=torch.float64)
    torch.testing.assert_close(covariance(model, twice), by_matrix(model, 2 * dense(model, batches()), prior), **TIGHT)
    gap = covariance(model, once) - covariance(model, twice)
    assert torch.linalg.eigvalsh(gap).min() > -1e-10


def test_limits(model: AnswerModel) -> None:
    fit = fit_full(task(model, batches()))
    jacobian = rows(model, TEST)[1]
    wide = covariance(model, fit.choose(Prior(1e9))[0]) * 1e9
    torch.testing.assert_close(wide, jacobian @ jacobian.mT, atol=1e-5, rtol=1e-5)
    train = batches()[0]
    root = softmax_root(model(train).logits.detach())
    for precision in (0.01, 1.0, 100.0):
        inner = root.mT @ covariance(model, fit.choose(Prior(precision))[0], train) @ root
        assert torch.linalg.eigvalsh(inner).max() <= 1 + 1e-9
        scaled = covariance(model, fit.choose(Prior(precision, scale=3.0))[0])
        torch.testing.assert_close(scaled, 3 * covariance(model, fit.choose(Prior(precision))[0]), **TIGHT)


def test_a_truncated_posterior_is_too_wide_by_no_more_than_its_bound(model: AnswerModel) -> None:
    parameters = sum(p.numel() for p in model.trainable().values())
    whole = posterior(model, batches(), Prior(1.0))
    cut = posterior(model, batches(), Prior(1.0), max_bytes=5.5 * 8 * parameters)
    assert len(cut.curvature) == 5
    following = whole.curvature[5] / (1 + whole.curvature[5])
    jacobian = rows(model, TEST)[1]
    gap = covariance(model, cut) - covariance(model, whole)
    assert torch.linalg.eigvalsh(gap).min() > -1e-9
    assert torch.linalg.eigvalsh(following * jacobian @ jacobian.mT - gap).min() > -1e-9
    assert gap.abs().max() > 1e-3


def test_questions_left_out_widen_by_no_more_than_their_bound(model: AnswerModel) -> None:
    traces = torch.cat([softmax_root(model(b).logits.detach()).square().sum((-2, -1)) for b in batches()])
    fit = fit_full(task(model, batches(), prune=traces.sort().values[2].item()))
    assert (fit.figures["questions"], fit.figures["dropped"]) == (3, 2)
    parts = zip(batches(), traces.split([3, 2]), strict=True)
    kept = [select_questions(b, t >= traces.sort().values[2]) for b, t in parts]
    kept = [batch for batch in kept if len(batch)]
    whole, pruned = dense(model, batches()), covariance(model, fit.choose(Prior(1.0))[0])
    torch.testing.assert_close(pruned, by_matrix(model, dense(model, kept), torch.ones(len(whole)).double()), **TIGHT)
    left_out = torch.linalg.eigvalsh(whole - dense(model, kept)).max()
    exactly = covariance(model, posterior(model, batches(), Prior(1.0)))
    assert torch.linalg.eigvalsh(pruned - exactly).min() > -1e-9
    assert torch.linalg.eigvalsh((1 + left_out) * exactly - pruned).min() > -1e-9


def test_draws_have_the_covariance(model: AnswerModel) -> None:
    fitted = posterior(model, batches(), Prior(2.0, subset_of_weights="B"))
    n = 4000
    draws = fitted.sample(n, torch.Generator().manual_seed(0))
    jacobian = contrast_jacobian(model, TEST, dtype=torch.float64)[1]
    mean = fitted.mean()
    moved = sum(torch.einsum("bcoi,noi->nbc", j, draws[name] - mean[name]) for name, j in jacobian.items())
    expected = covariance(model, fitted)
    for question in range(2):
        found = moved[:, question].T.cov()
        spread = expected[question].diagonal()
        error = ((spread[:, None] * spread + expected[question].square()) / n).sqrt()
        assert ((found - expected[question]).abs() <= 5 * error + 1e-12).all()


# --- stages on disk --------------------------------------------------------------------------------------------------


class Wide(TorchDispatchMode):
    """The most numbers of four bytes or more that any operation has made at once."""

    most = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        if isinstance(made, Tensor) and made.is_floating_point() and made.itemsize >= 4:
            self.most = max(self.most, made.untyped_storage().nbytes() // made.itemsize)  # a view holds no more
        return made


def test_directions_are_never_held_in_wide_numbers(model: AnswerModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """At 7B they are 20 GB in bfloat16, and would be 40 on their way there: a few columns are wide at a time."""
    monkeypatch.setattr("bayeslora.posteriors.laplace.shards._COLUMNS", 8)
    fit = fit_full(task(model, batches(), dtype=torch.bfloat16))
    with Wide() as wide:
        posterior = fit.choose(Prior(1.0))[0]
    directions = max(posterior.directions.values(), key=Tensor.numel)
    assert directions.dtype == torch.bfloat16
    assert wide.most < directions.numel() / 4


class Killed(list):
    """Batches of which the last is never reached."""

    def __iter__(self) -> Any:
        yield from list.__iter__(self[:-1])
        raise InterruptedError


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_fit_that_was_killed_goes_on_bit_for_bit(model: AnswerModel, tmp_path: Path, dtype: torch.dtype) -> None:
    whole = fit_full(task(model, batches(), [TEST], tmp_path / "whole", dtype=dtype)).choose(Prior())[0]
    with pytest.raises(InterruptedError):
        fit_full(task(model, Killed(batches()), [TEST], tmp_path / "cut", dtype=dtype))
    first = tmp_path / "cut" / "train" / "000000.safetensors"
    written = first.stat().st_mtime_ns
    resumed = fit_full(task(model, batches(), [TEST], tmp_path / "cut", dtype=dtype)).choose(Prior())[0]
    assert first.stat().st_mtime_ns == written
    assert resumed.precision == whole.precision
    for name, value in whole.directions.items():
        assert torch.equal(value, resumed.directions[name])
    again = fit_full(task(model, batches(), [TEST], tmp_path / "cut", dtype=dtype)).choose(Prior())[0]  # from disk
    assert torch.equal(again.curvature, whole.curvature)
    in_memory = fit_full(task(model, batches(), [TEST], None, dtype=dtype)).choose(Prior())[0]
    assert torch.equal(in_memory.curvature, whole.curvature)


@pytest.mark.parametrize("file", ["train/000001", "grams"])
def test_what_is_damaged_or_of_another_run_is_refused(model: AnswerModel, tmp_path: Path, file: str) -> None:
    fit_full(task(model, batches(), [TEST], tmp_path))
    path = tmp_path / f"{file}.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:-9] + bytes(9))
    with pytest.raises(UsageError, match=r"safetensors is damaged.*remove it"):
        fit_full(task(model, batches(), [TEST], tmp_path)).choose(Prior())
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UsageError, match=r"safetensors is damaged.*remove it"):
        fit_full(task(model, batches(), [TEST], tmp_path)).choose(Prior())
    path.write_bytes(whole)
    with pytest.raises(UsageError, match=r"of another run \(key, here other\)"):
        fit_full(replace(task(model, batches(), [TEST], tmp_path), key="other")).choose(Prior())
    fit_full(task(model, batches(), [TEST], tmp_path)).choose(Prior())


def test_a_disk_too_small_is_said_with_the_sizes(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"need up to 1e\+09 GB in .*GB free"):
        check_disk(tmp_path / "not" / "yet", 10**18)


def test_numbers_that_are_not_finite_stop_the_fit_and_leave_the_shards_before(
    model: AnswerModel, tmp_path: Path
) -> None:
    broken = batches()
    spoilt = task(model, broken, None, tmp_path)
    logits = spoilt.network.logits

    def nan_at_second(batch: AnswerBatch) -> Tensor:
        return logits(batch) * (torch.nan if len(batch) == 2 else 1.0)

    spoilt.network = replace(spoilt.network, logits=nan_at_second)
    with pytest.raises(RunError, match="logits of batch 1 are not finite"):
        fit_full(spoilt)
    DiskShards(tmp_path / "train", "key").check()
    assert len(DiskShards(tmp_path / "train", "key")) == 1


def test_logits_with_noise_are_refused(model: AnswerModel) -> None:
    noisy = task(model, batches())
    logits = noisy.network.logits
    noisy.network = replace(noisy.network, logits=lambda batch: logits(batch) + torch.rand(()))
    with pytest.raises(UsageError, match="dropout"):
        fit_full(noisy)
