"""Chains that agree are told from chains that do not."""

from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
pytest.importorskip("arviz")


@pytest.fixture(autouse=True)
def path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))


@pytest.fixture
def draws() -> torch.Tensor:
    return torch.randn(8, 250, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_independent_draws_have_converged(draws: torch.Tensor) -> None:
    from gold.convergence import diagnostics

    found = diagnostics(draws).summary
    assert found.converged
    assert found.quantities == 4
    assert 0.7 * 2000 < found.bulk < 1.4 * 2000


@pytest.mark.parametrize("what", ["another place", "another scale"])
def test_one_half_elsewhere_has_not(draws: torch.Tensor, what: str) -> None:
    from gold.convergence import diagnostics

    draws[:4, :, 0] = draws[:4, :, 0] + 1 if what == "another place" else draws[:4, :, 0] * 3
    found = diagnostics(draws).summary
    assert not found.converged
    assert found.worst > 1.05
    assert found.share == 0.75


def test_slow_chains_have_few_effective_draws(draws: torch.Tensor) -> None:
    from gold.convergence import diagnostics

    found = diagnostics(draws.repeat_interleave(20, 1)[:, :250]).summary
    assert found.bulk < 400
    assert not found.converged


def test_what_does_not_vary_has_not_converged(draws: torch.Tensor) -> None:
    from gold.convergence import diagnostics

    draws[..., 1] = 1.0
    assert not diagnostics(draws).summary.converged
