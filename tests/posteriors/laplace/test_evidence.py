"""The marginal likelihood against dense determinants, its derivatives and its one maximum."""

import pytest
import torch

from bayeslora.errors import UsageError
from bayeslora.posteriors.laplace.evidence import Evidence, independent, joint

TIGHT = {"atol": 1e-10, "rtol": 1e-10}


def rows(m: int = 6, p: int = 15, seed: int = 0) -> torch.Tensor:
    return torch.randn(m, p, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def joint_evidence(groups: int = 3) -> tuple[Evidence, torch.Tensor]:
    data = rows()
    parts = data.chunk(groups, -1)
    squares = torch.arange(1.0, groups + 1, dtype=torch.float64)
    return Evidence(-4.0, squares, joint(torch.stack([part @ part.T for part in parts]))), data


@pytest.mark.parametrize("precisions", [[0.3, 1.0, 7.0], [2.0, 2.0, 2.0]])
def test_groups_that_share_rows_against_the_dense_determinant(precisions: list[float]) -> None:
    evidence, data = joint_evidence()
    given = torch.tensor(precisions, dtype=torch.float64)
    prior = given.repeat_interleave(5).diag()
    expected = -4.0 - 0.5 * (given * evidence.squares).sum()
    expected -= 0.5 * (torch.linalg.slogdet(data.T @ data + prior)[1] - torch.linalg.slogdet(prior)[1])
    torch.testing.assert_close(evidence(given), expected, **TIGHT)


def test_one_group_from_eigenvalues() -> None:
    data = rows()
    eigenvalues = torch.linalg.eigvalsh(data @ data.T)
    square, precision = torch.tensor([2.0], dtype=torch.float64), torch.tensor([0.7], dtype=torch.float64)
    by_values = Evidence(0.0, square, independent([eigenvalues]))
    by_rows = Evidence(0.0, square, joint((data @ data.T)[None]))
    torch.testing.assert_close(by_values(precision), by_rows(precision), **TIGHT)
    torch.testing.assert_close(by_values.effective(precision), (eigenvalues / (eigenvalues + 0.7)).sum()[None], **TIGHT)
    torch.testing.assert_close(by_values.best(), by_rows.best(), atol=1e-8, rtol=1e-8)


@pytest.mark.parametrize("groups", [1, 3])
def test_the_maximum_is_a_maximum(groups: int) -> None:
    evidence, _ = joint_evidence(groups)
    best = evidence.best()
    torch.testing.assert_close(best * evidence.squares, evidence.effective(best), atol=1e-7, rtol=1e-7)
    assert (evidence.effective(best) >= 0).all()
    assert evidence.effective(best).sum() <= 6
    for factor in (0.01, 0.5, 0.99, 1.01, 2.0, 100.0):
        for group in range(groups):
            other = best.clone()
            other[group] *= factor
            assert evidence(other) < evidence(best)


def test_it_is_concave_in_the_logarithms() -> None:
    evidence, _ = joint_evidence()
    generator = torch.Generator().manual_seed(3)
    for _ in range(200):
        one, two = 4 * torch.randn(2, 3, dtype=torch.float64, generator=generator)
        middle = evidence(((one + two) / 2).exp())
        assert middle >= (evidence(one.exp()) + evidence(two.exp())) / 2 - 1e-9


def test_the_maximum_is_found_over_many_scales() -> None:
    for scale in (1e-6, 1e-3, 1e3, 1e6):
        data = rows() * scale**0.5
        evidence = Evidence(
            0.0, torch.ones(1, dtype=torch.float64), independent([torch.linalg.eigvalsh(data @ data.T)])
        )
        best = evidence.best()
        torch.testing.assert_close(best, evidence.effective(best), atol=1e-9, rtol=1e-7)


def test_no_optimum_is_said() -> None:
    centre = Evidence(0.0, torch.zeros(1, dtype=torch.float64), independent([torch.ones(3)]))
    silent = Evidence(0.0, torch.ones(1, dtype=torch.float64), independent([torch.zeros(3)]))
    for evidence in (centre, silent):
        with pytest.raises(UsageError, match="no optimum"):
            evidence.best()
