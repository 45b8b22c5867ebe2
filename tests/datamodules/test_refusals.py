"""What a user can get wrong about data: one line that says where, what was given and what is allowed."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bayeslora.datamodules import ARCDataModule, JSONLDataModule, OpenBookQADataModule, SyntheticDataModule
from bayeslora.errors import UsageError

GOOD = {"id": "a", "question": "q", "options": ["x", "y"], "label": 0}
HUB = {"id": "a", "question": "q", "choices": {"text": ["x", "y"], "label": ["A", "B"]}, "answerKey": "A"}
BAD_LINES = {
    "corrupt": ('{"id": "b", "question', "not valid JSON"),
    "binary": (b"\xff\xfe\x00{", "not valid JSON"),
    "no object": ("[1, 2]", "must be a JSON object"),
    "no question": ({"id": "b", "options": ["x", "y"], "label": 0}, "'question' is missing"),
    "no label": ({"id": "b", "question": "q", "options": ["x", "y"]}, "question 'b' has no label"),
    "unknown label": ({**GOOD, "id": "b", "label": -1}, "question 'b' has no label"),
    "no answer": ({**HUB, "id": "b", "answerKey": ""}, "question 'b' has no label"),
    "repeated option labels": (
        {**HUB, "id": "b", "choices": {"text": ["x", "y"], "label": ["A", "A"]}},
        r"option labels are \['A', 'A'\]; allowed: each label once",
    ),
    "choices are text": ({"question": "q", "choices": "xy", "answer": 0}, "choices are 'xy'; allowed: a list"),
    "an answer beyond the choices": ({"question": "q", "choices": ["x", "y"], "answer": "C"}, "'C' is not the index"),
    "half a surrogate pair": ('{"question": "a \\ud800", "options": ["x", "y"], "label": 0}', "not valid Unicode"),
    "nested brackets": ("[" * 100_000, "nested too deeply"),
    "a number of 5,000 digits": ('{"label": ' + "1" * 5000 + "}", "not valid JSON"),
    "question is a number": ({**GOOD, "id": "b", "question": 3}, "question"),
    "options are a string": ({**GOOD, "id": "b", "options": "xy"}, "options"),
    "an option is a number": ({**GOOD, "id": "b", "options": ["x", 2]}, "option"),
    "label too large": ({**GOOD, "id": "b", "label": 2}, "label 2; allowed: 0 to 1"),
    "label below zero": ({**GOOD, "id": "b", "label": -2}, "label -2; allowed: 0 to 1"),
    "label is a letter": ({**GOOD, "id": "b", "label": "A"}, "'A' is not the index"),
    "no options": ({**GOOD, "id": "b", "options": []}, r"0 option\(s\); allowed: 2 or more"),
    "one option": ({**GOOD, "id": "b", "options": ["x"]}, r"1 option\(s\); allowed: 2 or more"),
    "answer not among the options": ({**HUB, "id": "b", "answerKey": "E"}, r"answerKey 'E' is not among .*'A', 'B'"),
    "texts without labels": ({**HUB, "id": "b", "choices": {"text": ["x", "y"], "label": ["A"]}}, "2 option texts"),
    "duplicate id": (GOOD, "id 'a' is taken already by .*train.jsonl, line 1"),
}


def write(path: Path, rows: list[Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    raw = [row if isinstance(row, bytes | str) else json.dumps(row) for row in rows]
    path.write_bytes(b"\n".join(row if isinstance(row, bytes) else row.encode() for row in raw) + b"\n")
    return path


def one_line(error: Any) -> bool:
    return "\n" not in str(error.value)


@pytest.mark.parametrize("line, message", BAD_LINES.values(), ids=BAD_LINES.keys())
def test_a_bad_line_is_named(line: Any, message: str, tmp_path: Path) -> None:
    write(tmp_path / "test.jsonl", [GOOD])
    file = write(tmp_path / "train.jsonl", [GOOD, line])
    with pytest.raises(UsageError, match=f"{file}, line 2.*{message}") as error:
        JSONLDataModule(str(tmp_path)).setup("fit")
    assert one_line(error)


def test_both_schemas_and_blank_lines_are_read(tmp_path: Path) -> None:
    write(tmp_path / "test.jsonl", [{**HUB, "context": "c"}, "", GOOD | {"id": "b", "context": "c"}, "  "])
    write(tmp_path / "train.jsonl", [{**GOOD, "id": str(i)} for i in range(5)])
    data = JSONLDataModule(str(tmp_path))
    hub, plain = data.questions(data.test_names[0])
    assert (hub.id, plain.id) == ("a", "b")
    assert hub.content == plain.content == ("c", "q", ("x", "y"))


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "test.jsonl", [GOOD])
    (tmp_path / "train.jsonl").write_text("")
    with pytest.raises(UsageError, match=r"train.jsonl.* no question"):
        JSONLDataModule(str(tmp_path)).setup("fit")


def test_files_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"nowhere.* does not exist"):
        JSONLDataModule(str(tmp_path / "nowhere"))
    data = ARCDataModule(data_dir=str(tmp_path))
    with pytest.raises(UsageError, match=r"ai2_arc/ARC-Easy/train.jsonl does not exist.*data_dir"):
        data.setup("fit")
    write(tmp_path / "train.jsonl", [GOOD])
    with pytest.raises(UsageError, match=r"test.jsonl"):
        JSONLDataModule(str(tmp_path)).setup("fit")


def test_a_single_file_is_split_with_a_test_set_that_no_seed_changes(tmp_path: Path) -> None:
    file = write(tmp_path / "all.jsonl", [{**GOOD, "id": str(i), "question": f"q{i}"} for i in range(50)])
    tests, trains = [], []
    for seed in (0, 1):
        data = JSONLDataModule(str(file), seed=seed)
        parts = [{q.id for q in data.questions(name)} for name in ("train", "validation", data.test_names[0])]
        assert sorted(map(len, parts)) == [8, 10, 32]
        assert len(set.union(*parts)) == 50
        trains.append(parts[0])
        tests.append(parts[2])
    assert tests[0] == tests[1]
    assert trains[0] != trains[1]


def test_no_network_and_no_cache_names_the_ways_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    def unreachable(*_: Any, **__: Any) -> None:
        raise ConnectionError("Couldn't reach 'allenai/openbookqa' on the Hub\nand more")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(UsageError, match="allenai/openbookqa") as error:
        OpenBookQADataModule().setup("fit")
    assert one_line(error)
    for way in ("data_dir", "HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "HF_HOME"):
        assert way in str(error.value)


def test_the_hub_is_asked_for_the_published_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    asked = []

    def hub(repository: str, config: str, split: str) -> list[dict[str, Any]]:
        asked.append((repository, config, split))
        return [{**HUB, "id": f"{split}{i}", "question": f"{split} {i}"} for i in range(5)]

    monkeypatch.setattr(datasets, "load_dataset", hub)
    splits = ("train", "validation", "test")
    data = ARCDataModule("ARC-Challenge")
    monkeypatch.setattr(data.benchmark, "sizes", dict.fromkeys(splits, 5))
    data.prepare_data()
    assert [q.id for q in data.train_questions] == [f"train{i}" for i in range(5)]
    assert asked[:3] == [("allenai/ai2_arc", "ARC-Challenge", split) for split in splits]


def test_another_size_than_the_published_one(tmp_path: Path) -> None:
    write(tmp_path / "ai2_arc/ARC-Easy/train.jsonl", [HUB])
    write(tmp_path / "ai2_arc/ARC-Easy/validation.jsonl", [HUB])
    with pytest.raises(UsageError, match=r"split 'train': 1 questions, published are 2251; .*JSONLDataModule") as error:
        ARCDataModule(data_dir=str(tmp_path)).setup("fit")
    assert one_line(error)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: ARCDataModule("ARC-Hard"), "'ARC-Hard'.*ARC-Easy, ARC-Challenge"),
        (lambda: ARCDataModule(protocol="nope"), "protocol is 'nope'; allowed: default"),
        (lambda: ARCDataModule(readout="tail"), "readout is 'tail'; allowed: label_token, head"),
        (lambda: ARCDataModule(ood=["imagenet"]), "'imagenet'; allowed: arc_easy, arc_challenge, .*synthetic:"),
        (lambda: ARCDataModule(ood=["synthetic:strange"]), "'strange'; allowed: .*shifted, ood"),
        (lambda: ARCDataModule(ood=["arc_easy"]), "arc_easy"),
        (lambda: ARCDataModule(ood=["obqa", "obqa"]), "obqa"),
        (lambda: ARCDataModule(batch_size=0), "batch_size is 0; allowed: 1 or more"),
        (lambda: ARCDataModule(eval_batch_size=0), "eval_batch_size is 0; allowed: 1 or more"),
        (lambda: ARCDataModule(max_length=0), "max_length is 0; allowed: 1 or more"),
        (lambda: ARCDataModule(num_workers=-1), "num_workers is -1; allowed: 0 or more"),
        (lambda: SyntheticDataModule(labels=1).setup("fit"), "labels is 1; allowed .*2 to 2000"),
        (lambda: SyntheticDataModule(labels=2001).setup("fit"), "labels is 2001; allowed .*2 to 2000"),
        (lambda: SyntheticDataModule(tokenizer="/no/such/folder").encoded("train"), "tokenizer '/no/such/folder'"),
        (
            lambda: SyntheticDataModule().questions("training"),
            "'training'; here are train, validation, calibration, synthetic",
        ),
    ],
)
def test_arguments_out_of_range(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(UsageError, match=message) as error:
        make()
    assert one_line(error)
