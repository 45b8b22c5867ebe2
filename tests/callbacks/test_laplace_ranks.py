"""Processes that share the questions of a Laplace fit find what one finds."""

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from bayeslora.callbacks.fit_data import undealt
from bayeslora.curvature.ranks import Ranks
from bayeslora.datamodules import JSONLDataModule
from bayeslora.errors import RunError, UsageError
from bayeslora.posteriors.laplace.shards import DiskShards, MemoryShards
from tests.helpers import ddp_laplace
from tests.helpers.ddp import on_processes

SHORT = [(2, 19, ("full", "ekfac", "diag"))]
LONG = [(processes, n, tuple(ddp_laplace.CASES)) for processes in (2, 3) for n in (95, 97)]


def close(found: Any, expected: Any, what: str) -> float:
    """Assert that numbers agree to 1e-5 of their size; the largest difference."""
    if isinstance(expected, dict):
        return max(close(found[key], value, f"{what} {key}") for key, value in expected.items())
    if isinstance(expected, str | int):
        assert found == expected, what
        return 0.0
    one, other = torch.as_tensor(found, dtype=torch.float64), torch.as_tensor(expected, dtype=torch.float64)
    error = float((one - other).abs().max() / other.abs().max())
    assert error < 1e-5, f"{what}: {error}"
    return error


@pytest.mark.slow
@pytest.mark.parametrize(("processes", "n", "cases"), LONG if os.environ.get("BAYESLORA_LONG") else SHORT)
def test_processes_fit_what_one_fits(
    processes: int, n: int, cases: tuple[str, ...], data: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(data, tmp_path / "data"))
    lines = (folder / "train.jsonl").read_text().splitlines(keepends=True)
    (folder / "train.jsonl").write_text("".join(lines[:n]))
    together = on_processes(processes, ddp_laplace.of_cases, cases, tmp_path / "many", folder, processes)
    for case in cases:
        alone = ddp_laplace.fitted(case, tmp_path / "one", folder, 1)
        assert alone["questions"] == n
        print(f"{processes} processes, {n} questions, {case}: {close(together[case], alone, case):.1e}")
    fits = [{path.name for path in (tmp_path / kind / "laplace").iterdir()} for kind in ("one", "many")]
    assert fits[0] == fits[1]  # so that one process goes on with what several have fitted, and they with its
    assert not list((tmp_path / "many").glob("laplace/*/pass-*-of-*"))


def test_every_batch_of_one_process_is_dealt_once(data: Path) -> None:
    from types import SimpleNamespace

    def loader(rank: int, world: int) -> Any:
        module = JSONLDataModule(path=str(data), batch_size=8, eval_batch_size=7, seed=1)
        module.trainer = SimpleNamespace(global_rank=rank, world_size=world, overfit_batches=0)  # type: ignore[assignment]
        module.setup("fit")
        return module.train_eval_dataloader()

    expected = [batch.example_id.tolist() for batch in loader(0, 1)]
    for rank in range(2):
        assert [batch.example_id.tolist() for batch in undealt(loader(rank, 2))] == expected
    with pytest.raises(UsageError, match=r"the loader \(list\) does not say how"):
        undealt([1, 2])


def test_what_one_process_finds_reaches_the_others(tmp_path: Path) -> None:
    """Shards in memory are exchanged; on a disk that is not shared that is refused with the reason."""
    memory = MemoryShards()
    memory.write(1, {"rows": torch.ones(1, 1)})
    memory.exchange(lambda own: [own, {0: {"rows": torch.zeros(1, 1)}}])
    assert len(memory) == 2
    disk = DiskShards(tmp_path, "key")
    disk.write(1, {"rows": torch.ones(1, 1)})
    disk.exchange(lambda own: [own, own])
    with pytest.raises(UsageError, match=r"000000.safetensors, which another process has written, is not seen"):
        disk.exchange(lambda own: [own, ["000000.safetensors"]] if isinstance(own, list) else [own])


def test_a_process_whose_sibling_fails_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    ranks = Ranks()
    ranks.world = 2
    monkeypatch.setattr(Ranks, "gather", lambda self, value: [value, "UsageError: too small a disk"])
    with pytest.raises(RunError, match=r"process 1 of 2 has failed \(UsageError: too small a disk\)"), ranks.together():
        pass
    with pytest.raises(ValueError, match="our own"), ranks.together():
        raise ValueError("our own")
