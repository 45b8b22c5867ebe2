"""Agreement with laplace-torch where its definitions are ours: LoRA networks on vectors, one token a question."""

import warnings
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from bayeslora.curvature.fit import STRUCTURES, Task
from bayeslora.curvature.jacobian import contrast_jacobian
from bayeslora.curvature.rows import Network
from bayeslora.posteriors.laplace import function_space
from bayeslora.posteriors.laplace.fit import Prior
from tests.helpers.toy_lora import ToyModel, batch_of, lora_mlp

pytest.importorskip("laplace")

N, SIZE, OPTIONS, PRECISION = 20, 8, 3, 0.37
QUESTIONS, OTHERS = torch.arange(N), torch.arange(N, N + 4)


@pytest.fixture
def in_double(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """laplace-torch multiplies by matrices of the default dtype; every direction of ours is kept."""
    monkeypatch.setattr(function_space, "TOLERANCE", 0.0)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture(scope="module")
def inputs() -> Tensor:
    return torch.randn(N + 4, SIZE, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def labels() -> Tensor:
    return torch.randint(OPTIONS, (N,), generator=torch.Generator().manual_seed(2))


def theirs(structure: str, inputs: Tensor, labels: Tensor) -> Any:
    """Their posterior of a network with the same weights."""
    from laplace import Laplace
    from laplace.curvature import CurvlinopsGGN

    network = lora_mlp(SIZE, OPTIONS)
    data = DataLoader(TensorDataset(inputs[:N], labels), batch_size=5)
    options = {"subset_of_weights": "all", "hessian_structure": structure, "prior_precision": PRECISION}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fitted = Laplace(network, "classification", backend=CurvlinopsGGN, **options)
        fitted.fit(data)
    return fitted


def ours(structure: str, model: ToyModel, labels: Tensor) -> tuple[Any, dict[str, Any]]:
    """Our posterior, and what its report says."""
    batches = [batch_of(rows, OPTIONS, label=labels[rows]) for rows in QUESTIONS.split(7)]
    network = Network(
        parameters=model.trainable(),
        logits=lambda batch: model(batch).logits,
        jacobian=partial(contrast_jacobian, model),
        label=lambda batch: batch.label,
        move=lambda batch: batch,
        model=model,
    )
    task = Task(network=network, train=batches, validation=None, folder=None, key="toy", dtype=torch.float64)
    posterior, _, report = STRUCTURES[structure](task).choose(Prior(precision=PRECISION))
    return posterior, report


def contrasts(covariance: Tensor) -> Tensor:
    """The covariance of all logits as that of the differences to the first."""
    differences = torch.cat([-torch.ones(OPTIONS - 1, 1), torch.eye(OPTIONS - 1)], 1).double()
    return differences @ covariance @ differences.mT


@pytest.mark.parametrize(
    ("structure", "their_structure"),
    [("full", "full"), ("kfac_expand", "kron"), ("kfac_reduce", "kron"), ("diag", "diag")],
)
def test_same_logit_covariance_and_evidence(
    structure: str, their_structure: str, inputs: Tensor, labels: Tensor, in_double: None
) -> None:
    model = ToyModel(lora_mlp(SIZE, OPTIONS), inputs)
    (posterior, report), fitted = ours(structure, model, labels), theirs(their_structure, inputs, labels)
    _, jacobian = contrast_jacobian(model, batch_of(OTHERS, OPTIONS), dtype=torch.float64)
    _, variance = fitted._glm_predictive_distribution(inputs[N:])
    torch.testing.assert_close(posterior.logit_covariance(jacobian), contrasts(variance), atol=1e-10, rtol=1e-10)
    expected = fitted.log_marginal_likelihood().item()
    assert report["log_evidence"] == pytest.approx(expected, abs=1e-9, rel=1e-10)
