"""Laplace on modules that know nothing of this package, its ways to predict, and what it refuses."""

from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor, nn

from bayeslora.callbacks.laplace import Laplace
from bayeslora.callbacks.laplace_network import network_of
from bayeslora.curvature.linear_jacobian import linear_jacobian
from bayeslora.curvature.link import drawn, probit
from bayeslora.errors import UsageError
from bayeslora.lightning_modules.prediction_path import owners
from bayeslora.types import Predictive
from tests.callbacks.test_swag import QUIET, Classifier, loader, logits_of


def label_of(batch: list[Tensor]) -> Tensor:
    return batch[1]


def fitted(module: Classifier | None = None, **options: Any) -> tuple[Laplace, Classifier]:
    laplace = Laplace(logits_fn=logits_of, label_fn=label_of, dtype="float64", **{"precision": 2.0} | options)
    module = module or Classifier()
    trainer = L.Trainer(max_epochs=2, callbacks=[laplace], enable_checkpointing=False, **QUIET)
    trainer.fit(module, loader(), loader(1))
    return laplace, module


def dense_covariance(module: Classifier, x: Tensor, train: Tensor, precision: float) -> Tensor:
    """For the last layer: the logits' Jacobian is the features, weight by weight."""

    def jacobian(inputs: Tensor) -> Tensor:
        features = torch.cat([module.net[:2](inputs), torch.ones(len(inputs), 1)], -1).double()
        contrasts = torch.tensor([[-1.0, 1.0, 0.0], [-1.0, 0.0, 1.0]]).double()
        return torch.einsum("co,bf->bcof", contrasts, features).flatten(2)

    p = module.net(train).double().softmax(-1)[:, 1:]
    lam = torch.diag_embed(p) - p[:, :, None] * p[:, None]
    rows = jacobian(train)
    gauss_newton = torch.einsum("ncp,ncd,ndq->pq", rows, lam, rows)
    inverse = torch.linalg.inv(gauss_newton + precision * torch.eye(len(gauss_newton)).double())
    return torch.einsum("ncp,pq,ndq->ncd", jacobian(x), inverse, jacobian(x))


class Seen(L.Callback):
    """Keeps what the path predicts."""

    def __init__(self) -> None:
        self.laws: list[Any] = []

    def on_test_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        from bayeslora.lightning_modules.prediction_path import prediction_path

        self.laws.append(prediction_path(pl_module)(args[1]))


def predicted(laplace: Laplace, module: Classifier) -> list[Predictive]:
    seen = Seen()
    L.Trainer(callbacks=[laplace, seen], enable_checkpointing=False, **QUIET).test(module, loader(2), verbose=False)
    return seen.laws


def test_a_foreign_module_is_predicted_with_the_dense_posterior() -> None:
    laplace, module = fitted(train_batches=list(loader()), precision="evidence")
    before = {name: value.clone() for name, value in module.state_dict().items()}
    laws = predicted(laplace, module)
    train = torch.cat([x for x, _ in loader()])
    with torch.no_grad():
        for (x, _), found in zip(loader(2), laws, strict=True):
            expected = dense_covariance(module, x, train, laplace.report["precision"]["all"])
            torch.testing.assert_close(found.gaussian.cov, expected, atol=1e-5, rtol=1e-4)
            logits = module.net(x)
            torch.testing.assert_close(found.gaussian.mean, logits[:, 1:] - logits[:, :1])
    assert all(torch.equal(value, module.state_dict()[name]) for name, value in before.items())
    assert owners(module) == []


def test_training_is_as_without_and_modes_come_back() -> None:
    ends = []
    for callback in (None, Laplace(logits_fn=logits_of, label_fn=label_of)):
        module = Classifier()
        module.net[1].eval()
        trainer = L.Trainer(max_epochs=2, callbacks=[callback] if callback else [], enable_checkpointing=False, **QUIET)
        trainer.fit(module, loader())
        ends.append((module.state_dict(), [part.training for part in module.modules()]))
    assert all(torch.equal(value, ends[1][0][name]) for name, value in ends[0][0].items())
    assert ends[0][1] == ends[1][1]


def test_jacobians_of_linear_layers_are_autograds() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double()
    x, names = torch.randn(5, 4).double(), [name for name, _ in module.named_parameters()]
    _, found = linear_jacobian(module, module, x, names, torch.float64)

    def contrasts(*values: Tensor) -> Tensor:
        logits = torch.func.functional_call(module, dict(zip(names, values, strict=True)), (x,))
        return logits[:, 1:] - logits[:, :1]

    expected = torch.autograd.functional.jacobian(contrasts, tuple(p.detach() for p in module.parameters()))
    for name, value in zip(names, expected, strict=True):
        torch.testing.assert_close(found[name], value, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize(
    ("predict", "members"), [("linearised", None), ("probit", 1), ("mc", 500), ("weight_samples", 7)]
)
def test_ways_to_predict(predict: str, members: int | None) -> None:
    laplace, module = fitted(train_batches=list(loader()), predict=predict, samples=members or 1)
    (first, _) = predicted(laplace, module)
    if members is None:
        assert first.gaussian is not None
    else:
        assert len(first.weights) == members
    assert laplace.label == ("Laplace" if members is None else f"Laplace_{predict}")
    reference, again = fitted(train_batches=list(loader()))
    exactly = predicted(reference, again)[0].probs
    tolerance = {"linearised": 1e-12, "probit": 0.05, "mc": 0.1, "weight_samples": 0.5}[predict]
    torch.testing.assert_close(first.probs, exactly, atol=tolerance, rtol=0)


def test_draws_approach_the_integral_and_probit_does_not_depend_on_the_first_option() -> None:
    mean, root = torch.tensor([[0.5, -1.0]]).double(), torch.randn(2, 2, generator=torch.Generator().manual_seed(0))
    cov = (root @ root.T)[None].double()
    exactly = Predictive.from_gaussian(mean, cov).probs
    torch.testing.assert_close(drawn(200_000, 0, mean, cov).probs, exactly, atol=3e-3, rtol=0)
    swap = torch.tensor([[-1.0, 0.0], [-1.0, 1.0]]).double()  # contrasts with the second option in place of the first
    swapped = probit(mean @ swap.T, swap @ cov @ swap.T).probs[:, [1, 0, 2]]
    torch.testing.assert_close(probit(mean, cov).probs, swapped, atol=1e-12, rtol=0)


def test_averaged_logits_would_be_the_mean_alone() -> None:
    mean, cov = torch.tensor([[3.0]]).double(), torch.tensor([[[9.0]]]).double()
    averaged = Predictive.from_gaussian(mean, torch.zeros_like(cov)).probs
    bayesian = Predictive.from_gaussian(mean, cov).probs
    assert 0.5 < bayesian[0, 1] < averaged[0, 1] - 0.05


def test_what_is_refused() -> None:
    frozen = Classifier().requires_grad_(False)
    with pytest.raises(UsageError, match="no trainable parameters"):
        network_of(frozen, logits_of, label_of)
    with pytest.raises(UsageError, match="give Laplace logits_fn"):
        network_of(Classifier(), None, None)
    with pytest.raises(UsageError, match="does not sample weights"):
        Laplace(predict="samples")
    with pytest.raises(UsageError, match="no validation questions"):
        fitted(precision="validation")
    with pytest.raises(UsageError, match="needs a module of this package"):
        fitted(structure="kfac")
    with pytest.raises(UsageError, match="initial weights are not known"):
        fitted(prior_mean="initial")

    def noisy(module: Classifier, batch: list[Tensor]) -> Tensor:
        return nn.functional.dropout(module.net(batch[0]), 0.5, training=True)

    laplace = Laplace(logits_fn=noisy, label_fn=label_of)
    with pytest.raises(UsageError, match="dropout"):
        L.Trainer(max_epochs=1, callbacks=[laplace], enable_checkpointing=False, **QUIET).fit(Classifier(), loader())
