"""An eigendecomposition that a GPU does not find is asked of the CPU, and nobody asks anybody else."""

import ast
from pathlib import Path

import pytest
import torch

from bayeslora.errors import RunError
from bayeslora.quadrature import eigh

ROOT = Path(__file__).parents[1] / "bayeslora"
SOLVE = torch.linalg.eigh


class OnGPU(torch.Tensor):
    """A tensor that says it is on a GPU, whose solver does not converge."""

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return torch.device("cuda")

    def cpu(self) -> torch.Tensor:  # type: ignore[override]
        return self.as_subclass(torch.Tensor)


def test_what_a_gpu_does_not_find_the_cpu_does(monkeypatch: pytest.MonkeyPatch) -> None:
    def solve(matrix: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        asked.append(isinstance(matrix, OnGPU))
        if asked[-1]:
            raise torch.linalg.LinAlgError("linalg.eigh: failed to converge")
        return SOLVE(matrix)

    asked: list[bool] = []
    monkeypatch.setattr(torch.linalg, "eigh", solve)
    monkeypatch.setattr(torch.Tensor, "to", lambda self, *given: self)  # there is no GPU to bring it back to
    matrices = torch.tensor([[[2.0, 1.0], [1.0, 2.0]], [[1.0, 0.0], [0.0, 5.0]]])
    values, vectors = eigh(matrices.as_subclass(OnGPU))
    assert asked == [True, False]
    torch.testing.assert_close(values, torch.tensor([[1.0, 3.0], [1.0, 5.0]]))
    torch.testing.assert_close(vectors @ torch.diag_embed(values) @ vectors.mT, matrices)


def test_what_has_none_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def solve(matrix: torch.Tensor) -> None:
        raise torch.linalg.LinAlgError("linalg.eigh: failed to converge")

    monkeypatch.setattr(torch.linalg, "eigh", solve)
    with pytest.raises(RunError, match=r"a matrix \[2, 2\] has no eigendecomposition: linalg.eigh: failed"):
        eigh(torch.eye(2))


def test_everybody_asks_here() -> None:
    """But for the clock of :mod:`bayeslora.curvature.fit`, which throws the result away."""
    asking = {
        path.relative_to(ROOT).as_posix()
        for path in ROOT.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute) and ast.unparse(node).endswith("linalg.eigh")
    }
    assert asking == {"quadrature.py", "curvature/fit.py"}
