"""A cell's run folder: whose it is, what is done in it, and who works on it."""

import threading
from pathlib import Path

import pytest

from bayeslora.errors import UsageError
from bayeslora.grid.cells import DONE, LAST, PREDICTIONS, TRAINED, Cell
from bayeslora.grid.content import Contents

DOCUMENT = {"seed": 0, "configuration": {"model.lora.r": 8}}


@pytest.fixture
def cell(tmp_path: Path) -> Cell:
    return Cell("arc", "mle", 0, tmp_path / "cell")


def _write(cell: Cell, name: str, content: str = "x") -> None:
    file = cell.folder / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(content)


def test_a_folder_belongs_to_one_configuration(cell: Cell) -> None:
    cell.adopt(DOCUMENT)
    cell.adopt(DOCUMENT)
    with pytest.raises(UsageError, match=r"another configuration: configuration model.lora.r was 8 and is 4; move it"):
        cell.check({**DOCUMENT, "configuration": {"model.lora.r": 4}})


def test_a_run_that_no_grid_has_made_is_not_taken_over(cell: Cell) -> None:
    _write(cell, "checkpoints/last.ckpt")
    with pytest.raises(UsageError, match=r"holds a run \(checkpoints\) that no grid has made"):
        cell.adopt(DOCUMENT)


def test_what_is_done_is_what_it_was_when_it_ended(cell: Cell) -> None:
    assert not cell.done()
    _write(cell, PREDICTIONS)
    _write(cell, LAST)
    assert not cell.done()
    cell.end(DONE)
    cell.end(TRAINED)
    assert cell.done()
    assert cell.trained()
    _write(cell, PREDICTIONS, "other")
    assert not cell.done()
    (cell.folder / LAST).unlink()
    assert not cell.trained()


def test_attempts_are_counted_and_the_last_failure_is_kept(cell: Cell) -> None:
    assert (cell.status(), cell.attempts()) == ("waiting", (0, None))
    cell.note_attempt({"threads": 1})
    assert cell.status() == "begun"
    cell.note_failure("out of memory")
    assert (cell.status(), cell.attempts()) == ("failed", (1, "out of memory"))
    cell.note_attempt({"threads": 1})
    assert cell.attempts() == (2, None)


def test_a_damaged_record_is_one_line(cell: Cell) -> None:
    cell.adopt(DOCUMENT)
    _write(cell, "cell.json", (cell.folder / "cell.json").read_text().replace("8", "9"))
    with pytest.raises(UsageError, match=r"cell\.json is damaged"):
        cell.check(DOCUMENT)


def test_one_process_works_on_a_cell_and_another_waits(cell: Cell, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    waits = threading.Event()
    # Told by the call, not read from what is captured: text that comes between a reading and its clearing is lost.
    monkeypatch.setattr("builtins.print", lambda *text, **_: (order.append(text[0]), waits.set()))

    def second() -> None:
        with cell.locked():
            order.append("second")

    thread = threading.Thread(target=second, daemon=True)
    with cell.locked():
        thread.start()
        assert waits.wait(60)
        order.append("first")
    thread.join(60)
    assert order == [f"waiting for another process that works on {cell.key}", "first", "second"]


def test_content_is_what_is_in_the_files(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_bytes(b"weights")
        (tmp_path / name / "config.json").write_text("{}")
    contents = Contents(tmp_path / "cache.json")
    before = contents.folder(tmp_path / "a")
    assert contents.folder(tmp_path / "b") == before
    contents.keep()
    (tmp_path / "b" / "model.safetensors").write_bytes(b"Weights")
    assert Contents(tmp_path / "cache.json").folder(tmp_path / "b") != before
    assert Contents(tmp_path / "cache.json").folder(tmp_path / "a") == before
    (tmp_path / "cache.json").write_text("damaged")
    assert Contents(tmp_path / "cache.json").folder(tmp_path / "a") == before
