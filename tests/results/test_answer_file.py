"""Files of answers: every column is kept, the same numbers come back, streams go on after a kill."""

import json
import resource
import subprocess
import sys
from dataclasses import replace
from datetime import date
from decimal import Decimal
from pathlib import Path

import pytest
import torch

from bayeslora.decisions.rule import Decided
from bayeslora.errors import RunError, UsageError
from bayeslora.metrics import UNKNOWN, Answers, evaluate
from bayeslora.results.answer_file import COLUMNS, answer_rows, read_answers, read_rows
from bayeslora.results.answer_writer import AnswerWriter
from bayeslora.types import Predictive


def answers(n: int, options: int = 4, seed: int = 0) -> Answers:
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(3, n, options, generator=generator)
    logits[:, ::3, -1] = -torch.inf  # questions with an option less
    made = Answers.from_predictive(Predictive.from_logits(logits), torch.randint(2, (n,), generator=generator))
    return replace(made, example_id=[f"q{i}" for i in range(n)])


def rows(made: Answers, inputs: list[dict] | None = None, decided: Decided | None = None) -> list[dict]:
    texts = [[f"option {c}" for c in range(int(count))] for count in made.options]
    return answer_rows(made, texts, inputs or [{"customer": i} for i in range(len(made))], decided)


@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
def test_the_metrics_are_those_of_the_predictions(tmp_path: Path, ending: str) -> None:
    made, file = answers(50), tmp_path / f"answers.{ending}"
    with AnswerWriter(file) as writer:
        writer.write(rows(made))
    assert [path.name for path in tmp_path.iterdir()] == [file.name]
    found = read_answers(file).answers
    assert torch.equal(found.probs, made.probs)
    ours, theirs = (evaluate({"a": each}, "mle", 0)["datasets"]["a"] for each in (found, made))
    assert theirs.pop("outside_mass", None) is None  # these have no vocabulary
    assert ours == theirs


@pytest.mark.parametrize("values", [(1, "a"), ([1], "a"), ({},), (2**70,), ("\ud800",)])
def test_a_column_that_parquet_has_no_type_for_is_said_and_the_answers_stay(tmp_path: Path, values: tuple) -> None:
    made = rows(answers(len(values)), [{"note": value} for value in values])
    with pytest.raises(RunError, match=r"parquet has no type.*rename it to end in \.jsonl"):  # noqa: SIM117
        with AnswerWriter(tmp_path / "a.parquet") as writer:
            writer.write(made)
    assert [path.name for path in tmp_path.iterdir()] == ["a.parquet.partial"]
    left = (tmp_path / "a.parquet.partial").rename(tmp_path / "a.jsonl")
    assert [row["note"] for row in read_rows(left)] == list(values)


def test_what_json_has_no_kind_for_is_kept_as_text(tmp_path: Path) -> None:
    with AnswerWriter(tmp_path / "a.jsonl") as writer:
        writer.write(rows(answers(1), [{"asked": date(2024, 2, 1), "price": Decimal("1.50"), "note": "half \ud800"}]))
    assert (tmp_path / "a.jsonl").read_bytes().decode()  # any reader of UTF-8 takes it
    [kept] = read_rows(tmp_path / "a.jsonl")
    assert [kept[name] for name in ("asked", "price", "note")] == ["2024-02-01", "1.50", "half \ud800"]


def test_answers_of_two_earlier_runs_are_both_kept() -> None:
    [made] = rows(answers(1), [{"input_choice": 0, "choice": 2}])
    assert (made["input_choice"], made["input_input_choice"]) == (0, 2)


def test_every_column_of_the_question_is_kept() -> None:
    made = answers(2)
    made.label[1] = UNKNOWN
    inputs = [
        {"id": "q0", "customer": {"name": "A"}, "confidence": 3, "label": int(made.label[0])},
        {"id": "q1", "label": "refund", "options": ["option 0", "option 1", "option 2", "option 3"]},
    ]
    decided = Decided(
        choice=made.probs.argmax(1),
        confidence=made.probs.amax(1),
        sets=torch.tensor([[True, False, True, False], [False, True, False, False]]),
        empty=torch.zeros(2, dtype=torch.bool),
        abstain=torch.tensor([True, False]),
        reason=["entropy is 1.2, above 0.3", ""],
    )
    first, second = rows(made, inputs, decided)
    assert first["customer"] == {"name": "A"}
    assert first["input_confidence"] == 3
    assert "input_label" not in first
    assert (first["abstain"], first["set"], first["reason"]) == (True, [0, 2], "entropy is 1.2, above 0.3")
    assert (second["input_label"], second["label"], "input_options" in second) == ("refund", None, False)
    assert len(first["probabilities"]) == len(first["options"]) == 3
    assert first["answer"] == first["options"][first["choice"]]
    assert set(COLUMNS) <= set(first)


def test_a_killed_stream_is_continued(tmp_path: Path) -> None:
    made, file = rows(answers(10)), tmp_path / "answers.jsonl"

    def interrupted() -> None:
        with AnswerWriter(file) as writer:
            writer.write(made[:4])
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert not file.exists()
    with (tmp_path / "answers.jsonl.partial").open("a") as partial:
        partial.write('{"id": "q4", "probab')  # the last line was cut
    with AnswerWriter(file) as writer:
        assert writer.done == 4
        writer.write(made[writer.done :])
    assert list(read_rows(file)) == made
    with pytest.raises(UsageError, match=r"answers.jsonl exists; give another file, or overwrite=True"):
        AnswerWriter(file)
    with AnswerWriter(file, overwrite=True) as writer:
        assert writer.done == 0
        writer.write(made[:1])
    assert list(read_rows(file)) == made[:1]


def test_a_directory_is_no_file_of_answers(tmp_path: Path) -> None:
    (tmp_path / "answers.jsonl").mkdir()
    with pytest.raises(UsageError, match=r"answers.jsonl is a directory; give a file"):
        AnswerWriter(tmp_path / "answers.jsonl", overwrite=True)


def test_a_full_disk_is_one_line_and_nothing_is_lost(tmp_path: Path) -> None:
    made, file = rows(answers(40)), tmp_path / "answers.jsonl"

    def write(lines: list[dict]) -> None:
        with AnswerWriter(file) as writer:
            for line in lines:
                writer.write([line])

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (6_000, limits[1]))
    try:
        with pytest.raises(RunError, match=r"could not be written .*partial is kept") as failure:
            write(made)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "\n" not in str(failure.value)
    with AnswerWriter(file) as writer:
        assert 0 < writer.done < 40
        writer.write(made[writer.done :])
    assert list(read_rows(file)) == made


def test_parquet_takes_columns_that_come_late_or_change_from_null(tmp_path: Path) -> None:
    made = rows(answers(2500), [{"note": None} | ({"late": i} if i > 2000 else {}) for i in range(2500)])
    made[2400]["note"] = "text"
    with AnswerWriter(tmp_path / "a.parquet") as writer:
        for start in range(0, 2500, 500):
            writer.write(made[start : start + 500])
    found = list(read_rows(tmp_path / "a.parquet"))
    assert [row["id"] for row in found] == [row["id"] for row in made]
    assert (found[2400]["note"], found[0]["late"], found[2300]["late"]) == ("text", None, 2300)


def test_the_standard_output_is_a_file_too() -> None:
    code = (
        "from bayeslora.results.answer_writer import AnswerWriter\nwith AnswerWriter('-') as w: w.write([{'id': 'ä'}])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout
    assert json.loads(out) == {"id": "ä"}


def test_bad_files_are_refused_in_one_line(tmp_path: Path) -> None:
    good = rows(answers(3))
    file = tmp_path / "answers.jsonl"
    cases = {
        "line 2 of .* is no JSON": [good[0], "{"],
        "line 1 of .* is no JSON object but list": [[1]],
        r"row 1 of .* lacks numbers in 'probabilities'": [{"id": "a", "label": 0}],
        r"row 1 of .* sum to one: \[0.5, 0.6\]": [{**good[0], "probabilities": [0.5, 0.6]}],
        "row 1 of .* has label 9; allowed: 0 to 2": [{**good[0], "label": 9}],
        "row 1 of .* has the set": [{**good[0], "set": [7]}],
        r"row 1 of .* has the set \[\[0\]\]": [{**good[0], "set": [[0]]}],
        "row 1 of .* has the set 3": [{**good[0], "set": 3}],
        r"row 1 of .* has the set \[True\]": [{**good[0], "set": [True]}],
        "row 1 of .* has 'true_probs'": [{**good[0], "true_probs": [5, 3, 1]}],
        "row 1 of .* has 'true_probs' x": [{**good[0], "true_probs": "x"}],
        "row 1 of .* has 'abstain' 'no'": [{**good[0], "abstain": "no"}],
        "row 1 of .* lacks numbers in .* or 'aleatoric'": [{**good[0], "aleatoric": float("nan")}],
        "none of the 1 answers in .* has a label": [{**good[0], "label": None}],
    }
    for message, lines in cases.items():
        file.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
        with pytest.raises(UsageError, match=message) as refusal:
            read_answers(file)
        assert "\n" not in str(refusal.value)
    with pytest.raises(UsageError, match="there is no file"):
        read_answers(tmp_path / "nowhere.jsonl")
    with pytest.raises(UsageError, match=r"does not end in .jsonl or .parquet"):
        read_answers(tmp_path / "answers.csv")
    (tmp_path / "b.parquet").write_text("no")
    with pytest.raises(UsageError, match="not a readable parquet file"):
        read_answers(tmp_path / "b.parquet")


def test_sets_and_abstention_come_back(tmp_path: Path) -> None:
    made = answers(30)
    sets = made.probs > 0.2
    abstain = made.probs.amax(1) < 0.5
    decided = Decided(made.probs.argmax(1), made.probs.amax(1), sets, ~sets.any(1), abstain, ["x"] * 30)
    written = rows(made, decided=decided)
    written[3]["label"] = None
    with AnswerWriter(tmp_path / "a.jsonl") as writer:
        writer.write(written)
    found = read_answers(tmp_path / "a.jsonl")
    kept = torch.arange(30) != 3
    assert found.unlabelled == 1
    assert torch.equal(found.sets, sets[kept])
    assert torch.equal(found.abstain, abstain[kept])
