"""A divergence in the loss, on several processes: once, not once a process."""

from pathlib import Path

import pytest
import torch

from tests.helpers import ddp_gradients
from tests.helpers.ddp import on_processes


@pytest.mark.parametrize("case", ddp_gradients.CASES)
def test_two_processes_see_the_gradients_of_one_with_the_joint_batch(data: Path, tmp_path: Path, case: str) -> None:
    alone = ddp_gradients.gradients(case, tmp_path, data, processes=1)
    together = on_processes(2, ddp_gradients.gradients, case, tmp_path, data, 2)
    assert len(together) == len(alone) == (4 if case.endswith("two") else 2)
    for shared, own in zip(together, alone, strict=True):
        torch.testing.assert_close(shared, own, atol=1e-5, rtol=1e-4)
        assert all(gradient.abs().max() > 1e-6 for gradient in own.values())
