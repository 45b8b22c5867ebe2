"""Shards are opened once in a reading, however many columns are read, and are the same in memory and on disk."""

from pathlib import Path

import pytest
import torch

from bayeslora.posteriors.laplace import shards as module
from bayeslora.posteriors.laplace.grams import ROWS, gram_matrices
from bayeslora.posteriors.laplace.shards import DiskShards, MemoryShards, Shards

SIZES = {"one.lora_A.weight": 40_000, "two.lora_A.weight": 20_000, "two.lora_B.weight": 7}


def filled(shards: Shards, batches: int = 3) -> Shards:
    generator = torch.Generator().manual_seed(0)
    for index in range(batches):
        rows = torch.randn(6, sum(SIZES.values()), generator=generator).bfloat16()
        logits = torch.randn(3, 3, dtype=torch.float64, generator=generator)
        shards.write(index, {ROWS: rows, "logits": logits, "kept": torch.ones(3, dtype=torch.bool)})
    return shards


def test_one_reading_opens_a_shard_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    filled(DiskShards(tmp_path, "key"))
    opened: list[str] = []
    original = module.safe_open

    def counted(file: Path, **options: str) -> object:
        opened.append(Path(file).name)
        return original(file, **options)

    monkeypatch.setattr(module, "safe_open", counted)
    fresh = DiskShards(tmp_path, "key")
    with fresh.reading():
        for start in range(0, 60_000, 10_000):
            fresh.columns(ROWS, slice(start, start + 10_000))
    assert sorted(opened) == ["000000.safetensors", "000001.safetensors", "000002.safetensors"]
    opened.clear()
    centres = {"zero": {name: torch.ones(size) for name, size in SIZES.items()}}
    cells = {"one.lora_A.weight": "early.A", "two.lora_A.weight": "late.A", "two.lora_B.weight": "late.B"}
    found = gram_matrices(fresh, None, SIZES, cells, centres)
    assert (
        max(opened.count(name) for name in set(opened)) <= 3
    )  # which contrasts, whether kept, and one reading of rows
    expected = gram_matrices(filled(MemoryShards()), None, SIZES, cells, centres)
    assert torch.equal(found.train, expected.train)
    rows = torch.cat([filled(MemoryShards()).read(index, ROWS) for index in range(3)]).double()
    torch.testing.assert_close(found.train.sum(0), rows @ rows.T)
    torch.testing.assert_close(found.offsets["zero"].sum(0), rows.sum(1))


def test_an_error_closes_what_was_opened(tmp_path: Path) -> None:
    shards = DiskShards(tmp_path, "key")
    filled(shards)

    def interrupted() -> None:
        with shards.reading():
            shards.read(0, "logits")
            raise InterruptedError

    with pytest.raises(InterruptedError):
        interrupted()
    assert not shards._open
    assert shards.read(1, "logits").shape == (3, 3)
    assert not shards._open
