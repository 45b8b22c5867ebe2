"""Agreement with laplace-torch where its definitions are ours: LoRA networks on vectors, one token a question."""

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from bayeslora.models.jacobian import contrast_jacobian
from bayeslora.models.kfac import gaussian, sweeps
from tests.models.toy_lora import ToyModel, batch_of, lora_mlp

pytest.importorskip("laplace")

N, SIZE, OPTIONS, PRECISION = 20, 8, 3, 0.37
QUESTIONS, OTHERS = torch.arange(N), torch.arange(N, N + 4)


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


def ours(structure: str, model: ToyModel) -> Any:
    shapes = {name: parameter.shape for name, parameter in model.trainable().items()}
    for sweep in sweeps(structure, shapes, dtype=torch.float64):
        for rows in QUESTIONS.split(7):
            sweep.update(model, batch_of(rows, OPTIONS))
    return gaussian(sweep, model.trainable(), PRECISION)


def contrasts(covariance: Tensor) -> Tensor:
    """The covariance of all logits as that of the differences to the first."""
    differences = torch.cat([-torch.ones(OPTIONS - 1, 1), torch.eye(OPTIONS - 1)], 1).double()
    return differences @ covariance @ differences.mT


@pytest.mark.parametrize(
    ("structure", "their_structure"), [("kfac_expand", "kron"), ("kfac_reduce", "kron"), ("diag", "diag")]
)
def test_same_logit_covariance_and_log_determinant(
    structure: str, their_structure: str, inputs: Tensor, labels: Tensor
) -> None:
    model = ToyModel(lora_mlp(SIZE, OPTIONS), inputs)
    posterior, fitted = ours(structure, model), theirs(their_structure, inputs, labels)
    _, jacobian = contrast_jacobian(model, batch_of(OTHERS, OPTIONS), dtype=torch.float64)
    _, variance = fitted._glm_predictive_distribution(inputs[N:])
    torch.testing.assert_close(posterior.logit_covariance(jacobian), contrasts(variance), atol=1e-10, rtol=1e-10)
    log_det = sum((values / PRECISION).log1p().sum() for values in posterior.eigenvalues().values())
    torch.testing.assert_close(log_det, fitted.log_det_ratio.squeeze(), atol=1e-10, rtol=1e-10)
