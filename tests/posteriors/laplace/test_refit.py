"""The optimum of the linearised network against independent solvers, its evidence, and where there is none."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import scipy.optimize
import torch
from torch import Tensor

from bayeslora.errors import RunError, UsageError
from bayeslora.posteriors.laplace.refit import LinearisedModel
from bayeslora.posteriors.laplace.softmax import Labels, apply_roots

OPTIONS = [4, 3, 4, 2, 4, 4, 3, 4]
GROUPS = 3


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Problem:
    """Questions of two to four options whose contrasts are linear in P weights, in groups of them."""

    def __init__(self, parameters: int = 12, options: list[int] | None = None, seed: int = 0) -> None:
        options = OPTIONS if options is None else options
        self.present = torch.arange(max(options) - 1)[None] < torch.tensor(options)[:, None] - 1
        m = int(self.present.sum())
        self.jacobian = torch.randn(m, parameters, dtype=torch.float64, generator=generator(seed))
        self.trained = 2 * torch.randn(m, dtype=torch.float64, generator=generator(seed + 1))
        self.distance = torch.randn(parameters, dtype=torch.float64, generator=generator(seed + 2))
        self.labels = Labels(torch.tensor([seed % n for n in options]), self.present)

    def model(self, groups: int = GROUPS) -> LinearisedModel:
        parts = self.jacobian.chunk(groups, -1)
        kernels = torch.stack([part @ part.T for part in parts])
        return LinearisedModel(self.trained, self.jacobian @ self.distance, kernels, self.labels)

    def each(self, precisions: Tensor) -> Tensor:
        """The precision of every weight."""
        return precisions.repeat_interleave(self.jacobian.shape[1] // len(precisions))

    def shift(self, coefficients: Tensor, precisions: Tensor) -> Tensor:
        """v from the coefficients a."""
        return -self.distance + self.jacobian.T @ coefficients / self.each(precisions)

    def by_weights(self, precisions: Tensor) -> Tensor:
        """v by an optimiser over the weights themselves."""

        def loss(v: Tensor) -> Tensor:
            likelihood = self.labels.log_likelihood(self.trained + self.jacobian @ v)
            return 0.5 * (self.each(precisions) * (v + self.distance).square()).sum() - likelihood

        def of_numbers(function: Callable[[Callable, Tensor], Tensor]) -> Callable[[np.ndarray], np.ndarray]:
            return lambda v: function(loss, torch.from_numpy(v)).numpy()

        start = np.zeros(self.jacobian.shape[1])
        slope, hessian = of_numbers(torch.autograd.functional.jacobian), of_numbers(torch.autograd.functional.hessian)
        value = of_numbers(lambda function, v: function(v))
        options = {"gtol": 1e-11, "maxiter": 1000}
        found = scipy.optimize.minimize(value, start, method="trust-exact", jac=slope, hess=hessian, options=options)
        return torch.from_numpy(found.x)

    def drawn(self) -> Problem:
        """The same questions with answers drawn from weights that are drawn from a prior of precision one."""
        truth = torch.randn(self.jacobian.shape[1], dtype=torch.float64, generator=generator(7))
        law = self.labels.logits(self.jacobian @ truth).softmax(-1)
        self.labels.label = torch.multinomial(law, 1, generator=generator(8))[:, 0]
        self.trained = self.jacobian @ self.distance  # the prior's centre answers nothing
        return self


def precisions(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize("given", [precisions(1.0), precisions(0.05, 2.0, 30.0)])
@pytest.mark.parametrize("seed", [0, 1])
def test_it_is_the_penalised_optimum_of_another_solver(given: Tensor, seed: int) -> None:
    problem = Problem(seed=seed)
    mode = problem.model(len(given)).mode(given)
    expected = problem.by_weights(given)
    torch.testing.assert_close(problem.shift(mode.coefficients, given), expected, atol=1e-8, rtol=1e-8)
    torch.testing.assert_close(mode.rows, problem.trained + problem.jacobian @ expected, atol=1e-8, rtol=1e-8)
    assert mode.gradient_norm < 1e-8


def test_where_training_ended_at_the_optimum_nothing_is_left_to_do() -> None:
    problem, given = Problem(), precisions(0.5)
    shift = problem.by_weights(given)
    problem.trained, problem.distance = problem.trained + problem.jacobian @ shift, problem.distance + shift
    mode = problem.model(1).mode(given)
    assert problem.shift(mode.coefficients, given).abs().max() < 1e-8
    torch.testing.assert_close(mode.rows, problem.trained, atol=1e-8, rtol=0)


@pytest.mark.parametrize("precision", [0.1, 3.0])
def test_two_options_are_scikit_learns_gaussian_process(precision: float) -> None:
    processes = pytest.importorskip("sklearn.gaussian_process")
    kernels = pytest.importorskip("sklearn.gaussian_process.kernels")
    problem = Problem(parameters=6, options=[2] * 20)
    problem.labels.label = (problem.jacobian[:, 0] + problem.jacobian[:, 1] > 0.3).long()
    problem.trained = problem.jacobian @ problem.distance  # so that the prior's mean is zero
    model, given = problem.model(1), precisions(precision)
    kernel = kernels.ConstantKernel(1 / precision, "fixed") * kernels.DotProduct(0.0, "fixed")
    theirs = processes.GaussianProcessClassifier(kernel, optimizer=None, max_iter_predict=1000)
    theirs.fit(problem.jacobian.numpy(), problem.labels.label.numpy())
    mode = model.mode(given)
    found = torch.from_numpy(theirs.base_estimator_.pi_)
    torch.testing.assert_close(mode.rows.sigmoid(), found, atol=1e-6, rtol=0)
    assert model.log_evidence(given)[0] == pytest.approx(theirs.log_marginal_likelihood_value_, abs=1e-6)
    rows = torch.randn(5, 6, dtype=torch.float64, generator=generator(9))
    mean, variance = theirs.latent_mean_and_variance(rows.numpy())
    torch.testing.assert_close(
        rows @ problem.jacobian.T @ mode.coefficients / precision, torch.from_numpy(mean), atol=1e-5, rtol=0
    )
    root = problem.labels.root(mode.rows)
    w = apply_roots(root, problem.present, torch.eye(20, dtype=torch.float64)).diagonal()
    exact = torch.linalg.inv(problem.jacobian.T @ (w[:, None] * problem.jacobian) + precision * torch.eye(6))
    torch.testing.assert_close((rows @ exact * rows).sum(-1), torch.from_numpy(variance), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("given", [precisions(0.7), precisions(0.1, 1.0, 8.0)])
def test_the_evidence_and_its_slope(given: Tensor) -> None:
    problem = Problem()
    model = problem.model(len(given))
    value, slope = model.log_evidence(given)
    mode = model.mode(given)
    away = problem.shift(mode.coefficients, given) + problem.distance
    root = torch.block_diag(
        *[
            r[: int(k.sum()), : int(k.sum())]
            for r, k in zip(problem.labels.root(mode.rows), problem.present, strict=True)
        ]
    )
    curvature = problem.jacobian.T @ root @ root.T @ problem.jacobian
    prior = problem.each(given)
    log_det = torch.linalg.slogdet(curvature + prior.diag())[1] - prior.log().sum()
    dense = problem.labels.log_likelihood(mode.rows) - 0.5 * (prior * away.square()).sum() - 0.5 * log_det
    assert value == pytest.approx(dense.item(), abs=1e-9)
    for group in range(len(given)):
        step = torch.zeros_like(given)
        step[group] = 1e-4
        up, down = (problem.model(len(given)).log_evidence(given * (sign * step).exp())[0] for sign in (1, -1))
        assert slope[group].item() == pytest.approx((up - down) / 2e-4, abs=1e-7)


def test_the_best_precisions_are_best_and_not_those_found_in_turns() -> None:
    problem = Problem(options=[4, 3] * 20).drawn()
    model = problem.model()
    best = model.best()
    value, slope = model.log_evidence(best)
    assert slope.abs().max() < 1e-4
    for factor in (0.2, 0.8, 1.25, 5.0):
        for group in range(GROUPS):
            other = best.clone()
            other[group] *= factor
            assert model.log_evidence(other)[0] < value
    mode = model.mode(best)
    held = torch.stack([mode.coefficients @ k @ mode.coefficients for k in model.kernels]) / best
    root = model.labels.root(mode.rows)
    factor = torch.linalg.cholesky(torch.eye(len(mode.rows)) + apply_roots(root, problem.present, model.kernel(best)))
    gamma = (
        torch.stack(
            [(torch.cholesky_inverse(factor) * apply_roots(root, problem.present, k)).sum() for k in model.kernels]
        )
        / best
    )
    assert (held - gamma).abs().max() > 1e-2  # in turns, they would be the same


def test_permuting_options_permutes_the_answer() -> None:
    problem, given = Problem(options=[4] * 6), precisions(0.4)
    order = torch.tensor([2, 0, 3, 1])  # the option at each new place
    logits = torch.nn.functional.pad(problem.jacobian.view(6, 3, -1), (0, 0, 1, 0))[:, order]
    values = torch.nn.functional.pad(problem.trained.view(6, 3), (1, 0))[:, order]
    other = Problem(options=[4] * 6)
    other.jacobian = (logits[:, 1:] - logits[:, :1]).flatten(0, 1)
    other.trained = (values[:, 1:] - values[:, :1]).flatten()
    other.labels.label = order.argsort()[problem.labels.label]
    one, two = problem.model(1), other.model(1)
    first, second = (model.labels.logits(model.mode(given).rows).softmax(-1) for model in (one, two))
    torch.testing.assert_close(first[:, order], second, atol=1e-10, rtol=0)
    assert one.log_evidence(given)[0] == pytest.approx(two.log_evidence(given)[0], abs=1e-9)


def test_a_question_without_weight_changes_nothing() -> None:
    problem, given = Problem(), precisions(0.2, 0.9, 4.0)
    more = Problem(options=[*OPTIONS, 3])
    rows = len(problem.trained)
    more.jacobian = torch.cat([problem.jacobian, torch.zeros(2, 12, dtype=torch.float64)])
    more.trained, more.distance = torch.cat([problem.trained, more.trained[rows:]]), problem.distance
    more.labels.label = torch.cat([problem.labels.label, torch.tensor([1])])
    one, two = problem.model(), more.model()
    torch.testing.assert_close(one.mode(given).rows, two.mode(given).rows[:rows], atol=1e-10, rtol=0)
    constant = torch.nn.functional.pad(more.trained[rows:], (1, 0)).log_softmax(-1)[1].item()
    assert two.log_evidence(given)[0] == pytest.approx(one.log_evidence(given)[0] + constant, abs=1e-9)


def test_an_optimum_that_runs_off_is_said_with_the_precision() -> None:
    problem = Problem(parameters=60)  # more weights than rows: every question can be told apart
    with pytest.raises(RunError, match=r"prior precision 1e-300.*runs off.*larger precision"):
        problem.model(1).mode(precisions(1e-300))


def test_rows_that_are_all_certain() -> None:
    problem = Problem(options=[3] * 5)
    problem.labels.label = torch.zeros(5, dtype=torch.long)
    problem.trained = torch.full((10,), -2000.0, dtype=torch.float64)
    problem.distance = torch.zeros_like(problem.distance)
    model = problem.model(1)
    mode = model.mode(precisions(1.0))  # a prior around the trained weights: nothing to do
    torch.testing.assert_close(mode.rows, problem.trained)
    assert model.log_evidence(precisions(1.0))[0] == pytest.approx(0.0, abs=1e-12)
    with pytest.raises(UsageError, match=r"no optimum.*precision='validation'"):
        model.best()


def test_a_group_that_the_data_say_nothing_about_has_no_best_precision() -> None:
    problem = Problem(options=[4, 3] * 20)
    problem.jacobian[:, :4] *= 1e-9
    with pytest.raises(UsageError, match=r"no optimum.*give the precision as a number"):
        problem.drawn().model().best()
