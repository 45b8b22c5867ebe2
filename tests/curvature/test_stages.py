"""Passes that are killed go on bit for bit, and what is on disk is not computed again."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from bayeslora.curvature.stages import accumulate
from bayeslora.curvature.structures import BLOCK_STRUCTURES, accumulators
from bayeslora.errors import UsageError
from bayeslora.types import AnswerBatch
from tests.helpers.toy_lora import ToyModel, batch_of, lora_mlp

N, OPTIONS = 12, 3


class Killed(Exception):
    """Stands for the end of a process."""


@pytest.fixture
def model() -> ToyModel:
    inputs = torch.randn(N, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return ToyModel(lora_mlp(8, OPTIONS), inputs)


def batches(killed_at: tuple[int, int] | None = None) -> Callable[[int], Iterator[AnswerBatch]]:
    """Three batches a pass; the pass and batch at which the process ends."""

    def of_pass(number: int) -> Iterator[AnswerBatch]:
        for index, rows in enumerate(torch.arange(N).split(4)):
            if (number, index) == killed_at:
                raise Killed
            yield batch_of(rows, OPTIONS)

    return of_pass


def run(structure: str, model: Any, folder: Path | None, of_pass: Any, key: str = "key") -> dict[str, Any]:
    shapes = {name: parameter.shape for name, parameter in model.trainable().items()}
    passes = accumulators(structure, shapes, dtype=torch.float64)
    return accumulate(passes, model, of_pass, folder, key, save_every=0.0).blocks()


@pytest.mark.parametrize("structure", BLOCK_STRUCTURES)
@pytest.mark.parametrize("killed_at", [(0, 0), (0, 2), (1, 1)])
def test_killed_and_resumed_is_as_never_killed(
    structure: str, killed_at: tuple[int, int], model: ToyModel, tmp_path: Path
) -> None:
    expected = run(structure, model, None, batches())
    if killed_at[0] == 0 or structure == "ekfac":
        with pytest.raises(Killed):
            run(structure, model, tmp_path, batches(killed_at))
    updates: list[int] = []
    forward = model.register_forward_hook(lambda *_: updates.append(1))
    found = run(structure, model, tmp_path, batches())
    forward.remove()
    total = 6 if structure == "ekfac" else 3
    done = 3 * killed_at[0] + killed_at[1] if killed_at[0] == 0 or structure == "ekfac" else 0
    assert len(updates) == total - done
    for name, block in expected.items():
        pairs = zip(vars(found[name]).values(), vars(block).values(), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)


def test_complete_sums_are_read_not_computed(model: ToyModel, tmp_path: Path) -> None:
    run("kfac", model, tmp_path, batches())
    model.register_forward_hook(lambda *_: pytest.fail("the model ran"))
    run("kfac", model, tmp_path, batches())


def test_sums_of_another_run_or_damaged_ones_are_refused(model: ToyModel, tmp_path: Path) -> None:
    run("diag", model, tmp_path, batches())
    with pytest.raises(UsageError, match="another run"):
        run("diag", model, tmp_path, batches(), key="other")
    (file,) = tmp_path.iterdir()
    content = bytearray(file.read_bytes())
    content[-3] ^= 255
    file.write_bytes(content)
    with pytest.raises(UsageError, match="damaged"):
        run("diag", model, tmp_path, batches())
