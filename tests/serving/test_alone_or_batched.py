"""Answers alone and in batches differ by no more than is said, in every kind of arithmetic."""

from pathlib import Path
from types import ModuleType

import pytest

from bayeslora.serving.kept import load


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    import alone_or_batched

    return alone_or_batched


KINDS = ("float32", "bf16-mixed", "nf4, float32", "nf4, bf16-mixed", "8bit, float32", "8bit, bf16-mixed")


@pytest.mark.parametrize("kind", [*KINDS, "8bit, int8 products"])
def test_batches_change_no_more_than_is_said(kind: str, script: ModuleType, own: tuple[Path, list[dict]]) -> None:
    if kind[0].isdigit() or kind.startswith("nf4"):
        pytest.importorskip("bitsandbytes")
    found = script.compare(load(own[0]), kind, 8, 16)
    assert found.again == 0
    assert found.largest <= script.TOLERANCES[kind]
    assert found.usual <= found.largest


def test_every_kind_is_tested_and_shown(script: ModuleType) -> None:
    assert tuple(script.KINDS) == tuple(script.TOLERANCES) == (*KINDS, "8bit, int8 products")
    row = script.Difference("float32", 1.8e-6, 4e-7, 0.0, 0, 300)
    assert list(script.table([row]))[-1] == "| float32 | 1.8e-06 | 4.0e-07 | 0.0e+00 | 0 of 300 | 5e-06 |"
