"""A divergence in the loss, on several processes: once, not once a process."""

from pathlib import Path

import pytest
import torch

from tests.helpers import ddp_gradients
from tests.helpers.ddp import start
from tests.helpers.runs import questions


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Questions in ``data``, and the gradients of two processes that share every batch."""
    root = tmp_path_factory.mktemp("processes")
    start(ddp_gradients.__file__, root, questions(root / "data"))
    return root


@pytest.mark.parametrize("case", ddp_gradients.CASES)
def test_two_processes_see_the_gradients_of_one_with_the_joint_batch(folder: Path, case: str) -> None:
    together = torch.load(folder / "gradients.pt", weights_only=True)[case]
    alone = ddp_gradients.gradients(case, folder, folder / "data", processes=1)
    assert len(together) == len(alone) == (4 if case.endswith("two") else 2)
    for shared, own in zip(together, alone, strict=True):
        torch.testing.assert_close(shared, own, atol=1e-5, rtol=1e-4)
        assert all(gradient.abs().max() > 1e-6 for gradient in own.values())
