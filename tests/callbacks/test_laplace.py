"""Laplace on modules that know nothing of this package, its ways to predict, and what it refuses."""

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn

from bayeslora.callbacks.laplace import Laplace
from bayeslora.callbacks.laplace_network import network_of
from bayeslora.curvature.linear_jacobian import linear_jacobian
from bayeslora.curvature.link import monte_carlo, probit
from bayeslora.errors import UsageError
from bayeslora.lightning_modules.prediction_path import owners
from bayeslora.types import Predictive
from tests.helpers.classifier import QUIET, Classifier, loader, logits_of


def label_of(batch: list[Tensor]) -> Tensor:
    return batch[1]


def fitted(module: Classifier | None = None, **options: Any) -> tuple[Laplace, Classifier]:
    laplace = Laplace(logits_fn=logits_of, label_fn=label_of, dtype="float64", **{"precision": 2.0} | options)
    module = module or Classifier()
    trainer = L.Trainer(max_epochs=2, callbacks=[laplace], enable_checkpointing=False, **QUIET)
    trainer.fit(module, loader())
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
    torch.testing.assert_close(monte_carlo(200_000, 0, mean, cov).probs, exactly, atol=3e-3, rtol=0)
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


def test_probit_with_a_temperature_is_that_of_the_divided_law() -> None:
    mean, cov = (
        torch.tensor([[3.0, -1.0, -torch.inf]]).double(),
        torch.diag(torch.tensor([9.0, 4.0, 0.0]))[None].double(),
    )
    for temperature in (0.5, 1.0, 3.0):
        expected = probit(mean / temperature, cov / temperature**2).probs
        torch.testing.assert_close(probit(mean, cov).tempered(temperature).probs, expected, atol=1e-12, rtol=0)
    assert (
        probit(mean, cov).tempered(3.0).probs - Predictive.from_logits(probit(mean, cov).logits / 3.0).probs
    ).abs().max() > 0.01
    log_t = torch.zeros((), dtype=torch.float64, requires_grad=True)
    probit(mean, cov).map(torch.clone).tempered(log_t.exp()).nll(torch.tensor([1])).sum().backward()
    assert log_t.grad is not None
    assert log_t.grad.isfinite()
    laplace, module = fitted(train_batches=list(loader()), predict="probit", temperature=2.0)
    reference, again = fitted(train_batches=list(loader()))
    law = predicted(reference, again)[0].gaussian
    assert law is not None
    torch.testing.assert_close(
        predicted(laplace, module)[0].probs, probit(law.mean / 2, law.cov / 4).probs, atol=1e-9, rtol=0
    )


class Order(L.Callback):
    """Notes where the module is when training ends, and what Laplace holds when fit ends."""

    def __init__(self, laplace: Laplace) -> None:
        self.laplace = laplace
        self.fitted_at_fit_end = False

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.fitted_at_fit_end = self.laplace.posterior is not None


def test_it_fits_while_the_module_is_on_its_device_and_after_the_last_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lightning moves the module to the CPU before fit ends; a fit that fails must not cost the checkpoint."""
    events: list[str] = []
    module, original = Classifier(), Classifier.cpu
    monkeypatch.setattr(Classifier, "cpu", lambda self: (events.append("to the CPU"), original(self))[1])
    laplace = Laplace(precision=2.0, logits_fn=logits_of, label_fn=label_of)
    fit_to = laplace.fit_to

    def noted(trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        events.append("last.ckpt" if (tmp_path / "last.ckpt").exists() else "no checkpoint")
        events.append("fit")
        fit_to(trainer, pl_module)

    monkeypatch.setattr(laplace, "fit_to", noted)
    checkpoints = ModelCheckpoint(tmp_path, save_last=True, save_top_k=0)
    order = Order(laplace)
    trainer = L.Trainer(max_epochs=1, callbacks=[laplace, order, checkpoints], **QUIET)
    trainer.fit(module, loader())
    assert events.index("fit") < events.index("to the CPU")
    assert events[0] == "last.ckpt"
    assert order.fitted_at_fit_end


def test_a_fit_is_said_once(capsys: pytest.CaptureFixture[str]) -> None:
    laplace, module = fitted(train_batches=list(loader()))
    predicted(laplace, module)
    predicted(laplace, module)
    assert capsys.readouterr().out.count("laplace full:") == 1


def test_a_refit_of_a_foreign_module_leaves_nothing_to_gain() -> None:
    """The last layer's model is linear in it: what a refit finds has no gradient left, and prediction moves there."""
    laplace, module = fitted(train_batches=list(loader()), mean="refit", precision=0.5)
    assert laplace.report["refit"]["gradient_norm"] < 1e-6
    weights = {name: value.detach().clone().double() for name, value in module.net[2].named_parameters()}
    shift = {name.split(".")[-1]: value.double() for name, value in laplace.posterior.shift.items()}
    moved = {name: (weights[name] + shift[name]).requires_grad_(True) for name in weights}
    loss = torch.zeros((), dtype=torch.float64)
    for x, y in loader():
        logits = torch.func.functional_call(module.net[2].double(), moved, (module.net[:2](x).double().detach(),))
        loss = loss + nn.functional.cross_entropy(logits, y, reduction="sum")
    module.float()
    loss = loss + 0.25 * sum(value.square().sum() for value in moved.values())
    for slope in torch.autograd.grad(loss, list(moved.values())):
        assert slope.abs().max() < 1e-4
    (first, _) = predicted(laplace, module)
    x = next(iter(loader(2)))[0]
    with torch.no_grad():
        features = module.net[:2](x).double()
        logits = features @ moved["weight"].T + moved["bias"]
    torch.testing.assert_close(first.gaussian.mean, logits[:, 1:] - logits[:, :1], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sites": "last"}, "sites is called subset_of_weights now; give subset_of_weights='last'"),
        ({"mean": "moved"}, "mean is 'moved'; allowed: trained, refit"),
        ({"prior_mean": "one"}, "prior_mean is 'one'; allowed: zero, initial, trained"),
        ({"mean": "refit", "structure": "kfac"}, r"mean='refit' needs the Jacobian's rows.*structure='kfac'"),
    ],
)
def test_options_that_make_no_sense(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Laplace(**options)


def test_validation_without_questions_names_the_argument() -> None:
    with pytest.raises(UsageError, match="give val_batches"):
        fitted(precision="validation")
