"""The arithmetic of what fits a card agrees with what others have measured, and the script it rests on runs."""

import re
import weakref
from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def scripts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))


def test_the_arithmetic_agrees_with_published_figures() -> None:
    import memory_table

    for one in memory_table.published():
        assert one.ours == pytest.approx(one.theirs, rel=0.15), one.source


def test_the_table_has_every_method_task_and_base(capsys: pytest.CaptureFixture[str]) -> None:
    import memory_table

    memory_table.main()
    rows = [line for line in capsys.readouterr().out.splitlines() if re.match(r"\| (MLE|BLoB|ens|SWAG|Lap)", line)]
    assert len(rows) == 2 * len(memory_table.METHODS)
    for row in rows:
        cells = [re.fullmatch(r"([\d.]+) / ([\d.]+): (\d+ GB|none)", cell.strip()) for cell in row.split("|")[2:-1]]
        assert len(cells) == len(memory_table.TASKS)
        assert all(cell is not None and float(cell[2]) < float(cell[1]) for cell in cells)


def test_no_more_than_one_linear_map_is_held_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("bitsandbytes")
    import size_7b

    whole, quantise = [], size_7b.nf4

    def watched(linear, *rest):  # type: ignore[no-untyped-def]
        assert not [one for one in whole if one() is not None]
        whole.append(weakref.ref(linear))
        return quantise(linear, *rest)

    monkeypatch.setattr(size_7b, "nf4", watched)
    size_7b.built({**size_7b.TINY, "num_hidden_layers": 2})
    assert len(whole) == 14


@pytest.mark.slow
def test_the_model_of_true_width_is_measured_layer_by_layer(capsys: pytest.CaptureFixture[str]) -> None:
    import size_7b

    size_7b.main(["--tiny", "--layers", "1", "2", "--tokens", "8"])
    out = capsys.readouterr().out
    table = [line for line in out.splitlines() if line.startswith("| step") or line.startswith("| Laplace")]
    assert len(table) == 5
    kept = {int(n): float(value) for n, value in re.findall(r"(\d) layers: ([\d.]+) kB a token kept in float32", out)}
    half = {
        int(n): float(value) for n, value in re.findall(r"(\d) layers: .* ([\d.]+) kB a token kept in bfloat16", out)
    }
    assert kept[2] > 1.8 * kept[1]
    assert 1.2 * half[2] < kept[2] < 2.1 * half[2]  # masks and norms are float32 in both
