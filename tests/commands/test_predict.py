"""``bayeslora predict --run``: a file of questions becomes a file of answers, also after a kill and with bad lines."""

import json
import tracemalloc
from pathlib import Path
from types import SimpleNamespace

import pytest

from bayeslora.callbacks.predictions import Predictions
from bayeslora.cli import main
from bayeslora.commands import predict as command
from bayeslora.errors import UsageError
from bayeslora.metrics.evaluate import evaluate
from bayeslora.results.answer_file import read_answers, read_rows
from bayeslora.results.answer_writer import AnswerWriter
from bayeslora.results.prediction_file import read_predictions


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on the embedded benchmark that was tested on twelve questions."""
    import lightning as L

    from bayeslora import KeepForServing, LoRAModule
    from bayeslora.datamodules import SyntheticDataModule
    from bayeslora.models.loading import LoRA

    root = tmp_path_factory.mktemp("run")
    data = SyntheticDataModule(labels=20, batch_size=4, eval_batch_size=4, max_test=12)
    trainer = L.Trainer(
        accelerator="cpu", default_root_dir=root, callbacks=[Predictions(), KeepForServing()], logger=False,
        enable_checkpointing=False, enable_progress_bar=False,
    )  # fmt: skip
    trainer.test(LoRAModule(lora=LoRA(r=2), samples=0), datamodule=data, verbose=False)
    rows = [
        {"id": q.id, "question": q.question, "context": q.context, "options": list(q.options), "label": q.label, "x": 7}
        for q in data.questions("synthetic")
    ]
    (root / "asked.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return root


def ask(run: Path, out: Path | str, *more: str, questions: str | None = None) -> int:
    asked = questions or str(run / "asked.jsonl")
    return main(["predict", f"--run={run}", "--questions", asked, "--out", str(out), "--device=cpu", *more])


@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
def test_answers_are_the_tests_own_and_keep_every_column(run: Path, tmp_path: Path, ending: str) -> None:
    out = tmp_path / f"answers.{ending}"
    assert ask(run, out) == 0
    rows = list(read_rows(out))
    kept = read_predictions(run / "test" / "predictions.parquet").datasets["synthetic"]
    assert [row["id"] for row in rows] == list(kept.example_id)
    assert all(row["x"] == 7 for row in rows)
    for row, probs in zip(rows, kept.probs.tolist(), strict=True):
        assert row["probabilities"] == pytest.approx(probs[: len(row["options"])], abs=1e-6)
    labelled = read_answers(out).answers
    assert labelled.label.tolist() == kept.label.tolist()


def test_scored_answers_have_the_metrics_of_the_test(run: Path, tmp_path: Path) -> None:
    ask(run, tmp_path / "answers.jsonl")
    kept = read_predictions(run / "test" / "predictions.parquet").datasets["synthetic"]
    own = evaluate({"a": read_answers(tmp_path / "answers.jsonl").answers}, "mle", 0)["datasets"]["a"]
    test = evaluate({"a": kept}, "mle", 0)["datasets"]["a"]
    for name in ("accuracy", "nll", "brier", "ece_15", "aurc"):
        assert own[name] == pytest.approx(test[name], abs=1e-5), name


def test_a_killed_command_is_continued(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "_BATCHES", 1)
    whole = tmp_path / "whole.jsonl"
    ask(run, whole)
    lines = whole.read_text().splitlines(keepends=True)
    cut = tmp_path / "cut.jsonl"
    (tmp_path / "cut.jsonl.partial").write_text("".join(lines[:5]) + lines[5][:20])
    answered, _ = command.predict(run, run / "asked.jsonl", cut, device="cpu")
    assert answered == 7
    again = [json.loads(line) for line in cut.read_text().splitlines()]
    for row, line in zip(again, lines, strict=True):
        own = json.loads(line)
        assert row["id"] == own["id"]
        assert row["probabilities"] == pytest.approx(own["probabilities"], abs=1e-6)


def test_one_process_at_a_time_writes_a_file(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    out = tmp_path / "answers.jsonl"
    with AnswerWriter(out) as first:
        first.write([{"id": "0"}])
        for more in ([], ["--overwrite"]):
            assert ask(run, out, *more) == 2
            assert "another process is writing" in capsys.readouterr().err
    assert out.read_text() == '{"id": "0"}\n'
    assert [path.name for path in tmp_path.iterdir()] == ["answers.jsonl"]
    late = AnswerWriter(tmp_path / "late.jsonl")
    out.rename(tmp_path / "late.jsonl")  # another process ends between what is asked first and the lock
    with pytest.raises(UsageError, match="exists"), late:
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["late.jsonl"]  # no lock is left


def test_a_run_that_cannot_answer_takes_nothing_away(run: Path, tmp_path: Path) -> None:
    partial = tmp_path / "answers.jsonl.partial"
    partial.write_text('{"id": "0"}\n')
    assert ask(tmp_path / "none", tmp_path / "answers.jsonl", "--overwrite", questions=str(run / "asked.jsonl")) == 2
    assert partial.read_text() == '{"id": "0"}\n'
    assert ask(tmp_path / "none", tmp_path / "other.jsonl", questions=str(run / "asked.jsonl")) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["answers.jsonl.partial"]


def test_what_was_left_of_other_questions_or_another_run_is_not_gone_on_with(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(command, "_BATCHES", 1)
    ask(run, tmp_path / "whole.jsonl")
    rows = [json.loads(line) for line in (tmp_path / "whole.jsonl").read_text().splitlines()[:6]]
    partial = tmp_path / "cut.jsonl.partial"
    others = {**rows[5], "question": "Another?"}
    run_of_before = {**rows[0], "probabilities": rows[0]["probabilities"][::-1]}
    for left, said in (
        ([*rows[:5], others], "holds answers to other questions"),
        ([*rows, *rows, *rows], "holds answers to other questions"),
        ([run_of_before, *rows[1:]], "holds answers of another run"),
    ):
        partial.write_text("".join(json.dumps(row) + "\n" for row in left))
        before = partial.read_bytes()
        assert ask(run, tmp_path / "cut.jsonl") == 2
        assert said in capsys.readouterr().err
        assert partial.read_bytes() == before
        assert not (tmp_path / "cut.jsonl").exists()
    assert ask(run, tmp_path / "cut.jsonl", "--overwrite") == 0


def test_bad_lines_have_a_number_and_can_be_left_out(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "_BATCHES", 1)
    good = (run / "asked.jsonl").read_text().splitlines()[:3]
    letters = json.dumps({"question": "?", "options": [str(i) for i in range(40)]})
    lines = [good[0], "{broken", good[1], '{"question": "no options"}', letters, "[1]", good[2], '{"options": ["a"]}']
    asked = tmp_path / "asked.jsonl"
    asked.write_text("\n".join(lines))
    assert ask(run, tmp_path / "answers.jsonl", questions=str(asked)) == 2
    said = capsys.readouterr().err
    assert "line 2 of" in said
    assert "--skip-bad-lines" in said
    assert "Traceback" not in said
    assert ask(run, tmp_path / "answers.jsonl", "--skip-bad-lines", questions=str(asked)) == 0
    said = capsys.readouterr().err
    assert [f"line {n} of" in said for n in range(1, 9)] == [False, True, False, True, True, True, False, True]
    assert len(list(read_rows(tmp_path / "answers.jsonl"))) == 3
    # what an earlier process has left is counted in answers, not in lines
    kept = (tmp_path / "answers.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "answers.jsonl").unlink()
    (tmp_path / "answers.jsonl.partial").write_text("".join(kept[:2]))
    assert command.predict(run, asked, tmp_path / "answers.jsonl", "cpu", skip_bad_lines=True) == (1, 5)
    assert [r["id"] for r in read_rows(tmp_path / "answers.jsonl")] == [json.loads(line)["id"] for line in good]


def test_streams_and_files_that_are_in_the_way(
    run: Path, tmp_path: Path, capfdbinary: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (run / "asked.jsonl").open() as stream:
        monkeypatch.setattr("sys.stdin", stream)
        assert ask(run, "-", questions="-") == 0
    assert len(capfdbinary.readouterr().out.splitlines()) == 12
    (tmp_path / "there.jsonl").write_text("")
    for out, message in ((tmp_path / "there.jsonl", b"--overwrite"), (tmp_path / "a.csv", b"does not end in")):
        assert ask(run, out) == 2
        assert message in capfdbinary.readouterr().err
    with pytest.raises(UsageError, match="no file of questions"):
        command.predict(run, tmp_path / "none.jsonl", tmp_path / "x.jsonl")
    with pytest.raises(UsageError, match=r"device tpu cannot be used here .*; give auto or cpu"):
        command.predict(run, run / "asked.jsonl", tmp_path / "x.jsonl", device="tpu")


@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
def test_memory_does_not_grow_with_the_file(ending: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the model needs for a batch, the command holds a few batches and no more."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    echo = SimpleNamespace(
        kept=SimpleNamespace(batch_size=16),
        question=lambda row, fallback_id: row,
        prepare=lambda questions: questions,
        rows=lambda prepared, rows: [dict(row) for row in rows],
    )
    monkeypatch.setattr("bayeslora.serving.predictor.Predictor.from_run", lambda run, device: echo)

    def peak(count: int) -> int:
        asked, out = (tmp_path / f"{name}-{count}.{ending}" for name in ("asked", "answers"))
        rows = [{"id": str(place), "question": "x" * 500} for place in range(count)]
        if ending == "parquet":
            pq.write_table(pa.Table.from_pylist(rows), asked)
        else:
            asked.write_text("".join(json.dumps(row) + "\n" for row in rows))
        del rows
        tracemalloc.start()
        try:
            assert command.predict("run", asked, out, overwrite=True) == (count, 0)
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    peak(1000)  # what is imported on the way
    assert peak(8000) < 1.2 * peak(1000)
