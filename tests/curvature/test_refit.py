"""Refitted posteriors of small transformers against the optimum and the covariance of the weights themselves."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from bayeslora.curvature.fit import fit_full, load_full
from bayeslora.curvature.jacobian import contrast_jacobian, linearised_predictive
from bayeslora.errors import UsageError
from bayeslora.models.answer_model import AnswerModel
from bayeslora.posteriors.laplace.fit import Prior
from bayeslora.posteriors.state import load_posterior, save_posterior
from bayeslora.types import AnswerBatch
from tests.helpers.batches import label_token_batch
from tests.helpers.laplace_tasks import TARGETS, batches, rows, task
from tests.helpers.models import exact

TEST = label_token_batch([8, 5], [4, 3], 3)


@pytest.fixture
def model(llama: str) -> AnswerModel:
    return exact(llama, TARGETS)


def flat(values: dict[str, Tensor]) -> Tensor:
    return torch.cat([value.detach().flatten().double() for value in values.values()])


Known = list[tuple[AnswerBatch, Tensor, Tensor]]


def known(model: AnswerModel) -> Known:
    """Logits and Jacobians of the training questions, batch by batch."""
    return [(batch, *(value.detach() for value in rows(model, batch))) for batch in batches()]


def likelihood_at(parts: Known, v: Tensor) -> Tensor:
    """The training labels' log-likelihood under the linearised network at a shift of its weights."""
    total = torch.zeros((), dtype=torch.float64)
    for batch, logits, jacobian in parts:
        moved = logits.double() + torch.nn.functional.pad(jacobian @ v, (1, 0)).masked_fill(~batch.answer_mask, 0.0)
        total = total + moved.log_softmax(-1).gather(-1, batch.label[:, None]).sum()
    return total


def answered_by(model: AnswerModel) -> list[AnswerBatch]:
    """The questions with the network's own answers, so that the data ask for weights that are not zero."""
    return [replace(batch, label=model(batch).logits.argmax(-1)) for batch in batches()]


def dense(model: AnswerModel, precision: float, centre: Tensor) -> tuple[Tensor, Tensor]:
    """v and the posterior's covariance by Newton's method on all weights, with dense matrices."""
    weights = flat(dict(model.trainable()))
    v, parts = torch.zeros_like(weights), known(model)

    def loss(value: Tensor) -> Tensor:
        return 0.5 * precision * (weights + value - centre).square().sum() - likelihood_at(parts, value)

    for _ in range(20):
        hessian = precision * torch.eye(len(v), dtype=torch.float64)
        for batch, logits, jacobian in parts:
            there = torch.nn.functional.pad(jacobian @ v, (1, 0)).masked_fill(~batch.answer_mask, 0.0)
            p = (logits.double() + there).softmax(-1)[:, 1:]
            weights_of = torch.diag_embed(p) - p[:, :, None] * p[:, None]
            hessian += torch.einsum("ncp,ncd,ndq->pq", jacobian, weights_of, jacobian)
        v = v - torch.linalg.solve(hessian, torch.autograd.functional.jacobian(loss, v))
    assert torch.autograd.functional.jacobian(loss, v).norm() < 1e-9
    return v, torch.linalg.inv(hessian)


def test_shift_covariance_and_prediction_are_those_of_the_weights(model: AnswerModel) -> None:
    fit = fit_full(task(model, batches(), [TEST]))
    posterior, choice, report = fit.choose(Prior(2.0, posterior_mean="refit"))
    v, covariance = dense(model, 2.0, torch.zeros(1, dtype=torch.float64))
    assert posterior.shift is not None
    torch.testing.assert_close(flat({n: posterior.shift[n] for n in model.trainable()}), v, atol=1e-6, rtol=1e-5)
    jacobian = rows(model, TEST)[1]
    law = linearised_predictive(model, TEST, posterior, torch.float64).gaussian
    assert law is not None
    expected = torch.einsum("ncp,pq,ndq->ncd", jacobian, covariance, jacobian)
    torch.testing.assert_close(law.cov, expected, atol=1e-9 * expected.abs().max().item(), rtol=1e-8)
    logits = model(TEST).logits.double()
    there = TEST.answer_mask[:, 1:]
    moved = (logits[:, 1:] - logits[:, :1] + jacobian @ v)[there]
    torch.testing.assert_close(law.mean[there], moved, atol=1e-6, rtol=1e-6)
    assert law.mean[~there].isneginf().all()
    assert report["refit"]["gradient_norm"] < 1e-8
    assert report["log_likelihood"] == pytest.approx(likelihood_at(known(model), v).item(), abs=1e-8)
    assert report["log_likelihood_trained"] == pytest.approx(likelihood_at(known(model), 0 * v).item(), abs=1e-8)
    assert choice.notes["validation_nll"] == pytest.approx(
        linearised_predictive(model, TEST, posterior, torch.float64).nll(TEST.label).mean().item(), abs=1e-6
    )


@pytest.mark.parametrize("precision", ["evidence", "validation"])
def test_precisions_are_chosen_at_the_refitted_optimum(model: AnswerModel, precision: str) -> None:
    fit = fit_full(task(model, answered_by(model), [TEST]))
    choice = fit.choose(Prior(precision, posterior_mean="refit"))[1]

    def quality(value: float) -> float:
        own = fit.choose(Prior(value, posterior_mean="refit"))[2]
        return own["log_evidence"] if precision == "evidence" else -own["validation_nll"]

    best = choice.precisions.item()
    assert all(quality(best) >= quality(best * factor) - 1e-7 for factor in (0.1, 0.5, 0.9, 1.1, 2.0, 10.0))


def test_a_prior_around_the_trained_weights_leaves_today_s_covariance(model: AnswerModel) -> None:
    fit = fit_full(task(model, batches()))
    jacobian = contrast_jacobian(model, TEST, dtype=torch.float64)[1]
    zero, trained = (
        fit.choose(Prior(0.7, mean=centre))[0].logit_covariance(jacobian) for centre in ("zero", "trained")
    )
    assert torch.equal(zero, trained)
    with pytest.raises(UsageError, match="the weights are the prior's centre"):
        fit.choose(Prior("evidence", mean="trained"))
    refitted = fit.choose(Prior(1e6, mean="trained", posterior_mean="refit"))[0]
    assert refitted.logit_shift(jacobian).abs().max() < 1e-2  # held where it is by a strong prior


def test_the_initial_weights_as_centre(model: AnswerModel) -> None:
    initial = {name: torch.full_like(value, 0.05) for name, value in model.trainable().items()}
    fit = fit_full(task(model, batches(), initial=initial))
    posterior = fit.choose(Prior(3.0, mean="initial", posterior_mean="refit"))[0]
    v, _ = dense(model, 3.0, torch.full((1,), 0.05, dtype=torch.float64))
    torch.testing.assert_close(flat({n: posterior.shift[n] for n in model.trainable()}), v, atol=1e-6, rtol=1e-5)


def test_groups_and_subsets_leave_the_others_where_they_are(model: AnswerModel) -> None:
    posterior = fit_full(task(model, batches())).choose(
        Prior(1.5, subset_of_weights="B", groups="depth", posterior_mean="refit")
    )[0]
    assert all(".lora_B." in name for name in posterior.shift)
    assert posterior.shift.keys() == posterior.precision.keys()


def test_from_disk_and_from_a_posterior_s_file(model: AnswerModel, tmp_path: Path) -> None:
    prior = Prior("evidence", posterior_mean="refit")
    made = fit_full(task(model, answered_by(model), [TEST], tmp_path / "fit"))
    posterior = made.choose(prior)[0]
    again = load_full(tmp_path / "fit").choose(prior)[0]
    assert all(torch.equal(value, again.shift[name]) for name, value in posterior.shift.items())
    save_posterior(posterior, tmp_path / "posterior")
    read = load_posterior(tmp_path / "posterior")
    jacobian = contrast_jacobian(model, TEST, dtype=torch.float64)[1]
    assert torch.equal(read.logit_shift(jacobian), posterior.logit_shift(jacobian))
    assert torch.equal(read.logit_covariance(jacobian), posterior.logit_covariance(jacobian))


def test_what_a_refit_cannot_do_is_said(model: AnswerModel) -> None:
    pruned = fit_full(task(model, batches(), prune=1.0))
    with pytest.raises(UsageError, match=r"mean='refit' needs the rows of all training questions, \d were left out"):
        pruned.choose(Prior(1.0, posterior_mean="refit"))
    with pytest.raises(UsageError, match="Laplace's mean is 'moved'; allowed: trained, refit"):
        pruned.choose(Prior(1.0, posterior_mean="moved"))


# --- questions left out ----------------------------------------------------------------------------------------------


def test_precision_by_validation_where_every_question_is_left_out(model: AnswerModel) -> None:
    fit = fit_full(task(model, batches(), [TEST], prune=1e9))
    assert fit.figures["questions"] == 0
    posterior, choice, _ = fit.choose(Prior("validation"))
    jacobian = rows(model, TEST)[1]
    found = posterior.logit_covariance(contrast_jacobian(model, TEST, dtype=torch.float64)[1])
    torch.testing.assert_close(found, jacobian @ jacobian.mT / choice.precisions.item())


def test_a_network_that_is_certain_of_everything_loses_no_question(model: AnswerModel) -> None:
    """What is left out is a share of what there is, not what is small in itself."""
    sure = task(model, batches(), prune=1e-6)
    logits = sure.network.logits
    sure.network = replace(sure.network, logits=lambda batch: 25 * logits(batch))
    pruned, whole = fit_full(sure), fit_full(replace(sure, prune=0.0))
    assert pruned.figures["dropped"] <= 2
    one, other = (fit.choose(Prior())[1].precisions.item() for fit in (pruned, whole))
    assert one == pytest.approx(other, rel=1e-3)
