"""The full posterior by its directions: never negative, exact for the rows it keeps, and what rounding does to it."""

import pytest
import torch
from torch import Tensor

from bayeslora.posteriors.laplace.full import FullPosterior

SIZE = 1000


def one_direction(dtype: torch.dtype, curvature: float = 1e5) -> tuple[FullPosterior, Tensor]:
    """A posterior that knows about one direction of a thousand normal numbers."""
    direction = torch.randn(SIZE, generator=torch.Generator().manual_seed(0))
    rows = {"w": (direction / direction.norm())[None].to(dtype)}
    return FullPosterior({"w": torch.zeros(SIZE)}, rows, torch.tensor([curvature]), {"w": 1.0}), direction


def several(dtype: torch.dtype, curvatures: Tensor, precision: float) -> tuple[FullPosterior, Tensor]:
    """A posterior with several directions, and its covariance by a dense inverse for the rows as they are kept."""
    rows = torch.randn(len(curvatures), SIZE, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    rows = torch.linalg.qr(rows.T)[0].T / precision**0.5
    kept = rows.to(dtype)
    made = FullPosterior({"w": torch.zeros(SIZE)}, {"w": kept}, curvatures, {"w": precision})
    whitened = kept.double() * precision**0.5
    dense = torch.linalg.inv(torch.eye(SIZE) + whitened.T @ (curvatures[:, None] * whitened)) / precision
    return made, dense


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 0.3), (torch.float32, 1e-4), (torch.float64, 1e-6)])
def test_the_variance_along_a_well_known_direction(dtype: torch.dtype, tolerance: float) -> None:
    posterior, direction = one_direction(dtype)
    expected = direction.double().square().sum().item() / (1 + 1e5)
    found = posterior.logit_covariance({"w": direction[None, None]}).item()
    assert found == pytest.approx(expected, rel=tolerance)
    assert found >= expected * (1 - 1e-3)
    assert posterior.rounding <= tolerance


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("precision", [1e-3, 1.0])
def test_it_is_the_inverse_for_the_rows_it_keeps(dtype: torch.dtype, precision: float) -> None:
    curvatures = torch.logspace(6, -2, 20, dtype=torch.float64)
    posterior, dense = several(dtype, curvatures, precision)
    along = posterior.directions["w"].double() * precision**0.5
    jacobian = (torch.randn(30, 20, dtype=torch.float64, generator=torch.Generator().manual_seed(2)) @ along).view(
        10, 3, -1
    )
    expected = torch.einsum("bip,pq,bjq->bij", jacobian, dense, jacobian)
    found = posterior.logit_covariance({"w": jacobian})
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-9 * expected.abs().max().item())


@pytest.mark.parametrize("curvature", [1e2, 1e5, 1e9, 1e14])
def test_no_variance_is_negative(curvature: float) -> None:
    posterior, direction = one_direction(torch.bfloat16, curvature)
    toward = posterior.directions["w"][0].float() * 30
    for row in (direction, toward):
        assert (
            posterior.logit_covariance({"w": row[None, None]}).item()
            >= row.square().sum().item() / (1 + curvature) * 0.999
        )


def test_draws_have_the_covariance_and_the_shift() -> None:
    curvatures = torch.tensor([300.0, 5.0], dtype=torch.float64)
    posterior, dense = several(torch.bfloat16, curvatures, 2.0)
    moved = FullPosterior(
        posterior.mean(), posterior.directions, posterior.curvature, posterior.precision, 1.0, {"w": torch.ones(SIZE)}
    )
    draws = moved.sample(20_000, torch.Generator().manual_seed(0))["w"].double()
    rows = torch.cat([posterior.directions["w"].double(), torch.eye(SIZE, dtype=torch.float64)[:2]])
    found, expected = (draws @ rows.T).T.cov(), rows @ dense @ rows.T
    spread = expected.diagonal()
    error = ((spread[:, None] * spread + expected.square()) / len(draws)).sqrt()
    assert ((found - expected).abs() <= 5 * error).all()
    torch.testing.assert_close(draws.mean(), torch.ones((), dtype=torch.float64), atol=1e-3, rtol=0)


def test_a_state_of_before_has_no_shift_and_predicts_the_same() -> None:
    posterior, direction = one_direction(torch.bfloat16)
    state = posterior.state_dict()
    old = {key: value for key, value in state.items() if key != "products"}
    jacobian = {"w": direction[None, None]}
    for one in (state, old):
        again = FullPosterior.from_state_dict(one)
        assert again.shift is None
        assert again.logit_shift(jacobian) == 0.0
        assert torch.equal(again.logit_covariance(jacobian), posterior.logit_covariance(jacobian))


def test_a_shift_moves_the_logits_and_is_kept() -> None:
    posterior, direction = one_direction(torch.float32)
    shift = {"w": torch.randn(SIZE, generator=torch.Generator().manual_seed(3))}
    moved = FullPosterior(posterior.mean(), posterior.directions, posterior.curvature, posterior.precision, 1.0, shift)
    again = FullPosterior.from_state_dict(moved.state_dict())
    found = again.logit_shift({"w": direction[None, None]})
    torch.testing.assert_close(found, (direction.double() @ shift["w"].double())[None, None])


def test_what_a_device_held_is_given_back() -> None:
    posterior, direction = one_direction(torch.bfloat16)
    posterior.logit_covariance({"w": direction[None, None]})
    assert posterior._placed is not None
    posterior.release()
    assert posterior._placed is None


def test_what_rounding_costs_is_said() -> None:
    for curvature in (1e3, 1e5, 1e6):
        posterior, direction = one_direction(torch.bfloat16, curvature)
        exact = direction.double().square().sum().item() / (1 + curvature)
        excess = posterior.logit_covariance({"w": direction[None, None]}).item() / exact - 1
        assert posterior.rounding == pytest.approx(excess, rel=0.25)
