"""The files of the story, and what is counted of its answers."""

import json
from pathlib import Path

from benchmarks.intents import INTENTS, PARTS, outcome, write


def test_parts_are_apart_and_the_same_every_time(tmp_path: Path) -> None:
    source = tmp_path / "data_full.json"
    found = {
        "train": [[f"{intent} {number}", intent] for intent in INTENTS for number in range(100)],
        "val": [[f"{intent} {number}", intent] for intent in INTENTS for number in range(100, 120)],
        "test": [[f"{intent} {number}", intent] for intent in INTENTS for number in range(120, 150)],
        **{f"oos_{split}": [[f"{split} {number}", "oos"] for number in range(5)] for split in ("train", "val", "test")},
    }
    found["train"].append(["play some music", "play_music"])
    source.write_text(json.dumps(found))
    write(source, tmp_path / "one" / "intents")
    write(source, tmp_path / "two" / "intents")
    files = {file.relative_to(tmp_path / "one"): file.read_text() for file in (tmp_path / "one").rglob("*.jsonl")}
    assert files == {f.relative_to(tmp_path / "two"): f.read_text() for f in (tmp_path / "two").rglob("*.jsonl")}
    rows = {str(name): [json.loads(line) for line in text.splitlines()] for name, text in files.items()}
    assert {name: len(part) for name, part in rows.items()} == {
        **{f"intents/{part}.jsonl": PARTS[part] for part in ("train", "calibration", "test")},
        "new.jsonl": PARTS["new"],
        "elsewhere.jsonl": 15,
    }
    texts = [row["sentence"] for part in rows.values() for row in part]
    assert len(set(texts)) == len(texts)
    assert "play some music" not in texts
    assert all("label" not in row for name in ("new.jsonl", "elsewhere.jsonl") for row in rows[name])


def test_errors_are_counted_among_the_answered(tmp_path: Path) -> None:
    options = ["a", "b"]
    given = [("a", 0, False), ("a", 1, False), ("b", 0, True), ("b", 1, True), (None, 0, False)]
    rows = [{"options": options, "intent": i, "choice": c, "abstain": a} for i, c, a in given]
    file = tmp_path / "answers.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    assert outcome(file) == {"messages": 5, "answered": 3, "wrong": 2, "wrong if all were answered": 3}
