"""What is trained, validated and tested on."""

from pathlib import Path

import pytest

from bayeslora.datamodules import JSONLDataModule
from bayeslora.errors import UsageError


def test_a_folder_gives_its_files(question_folder: Path) -> None:
    data = JSONLDataModule(path=str(question_folder))
    sizes = [
        len(questions) for questions in (data.train_questions, data.val_questions, data.questions(data.test_names[0]))
    ]
    assert sizes == [37, 10, 11]
    assert [question.id for question in data.train_questions] == [f"train{i}" for i in range(37)]


def test_without_a_validation_file_a_seeded_fifth_of_train(question_folder: Path) -> None:
    (question_folder / "validation.jsonl").unlink()
    chosen = []
    for seed in (0, 0, 1):
        data = JSONLDataModule(path=str(question_folder), seed=seed)
        train, validation = ({q.id for q in questions} for questions in (data.train_questions, data.val_questions))
        assert len(train) == 29
        assert len(validation) == 8
        assert train | validation == {f"train{i}" for i in range(37)}
        chosen.append(validation)
    assert chosen[0] == chosen[1] != chosen[2]


def test_without_a_test_file_validation_is_tested_on(question_folder: Path) -> None:
    (question_folder / "test.jsonl").unlink()
    data = JSONLDataModule(path=str(question_folder))
    tested = {question.id for question in data.questions(data.test_names[0])}
    assert tested == {f"validation{i}" for i in range(10)}
    assert not tested & {question.id for question in data.val_questions}


@pytest.mark.parametrize("budget, expected", [(2, (1, 1)), (10, (8, 2)), (37, (29, 8))])
def test_the_label_budget_covers_training_and_validation(
    question_folder: Path, budget: int, expected: tuple[int, int]
) -> None:
    data = JSONLDataModule(path=str(question_folder), labels=budget, seed=1)
    assert (len(data.train_questions), len(data.val_questions)) == expected
    ids = {question.id for question in data.train_questions + data.val_questions}
    assert len(ids) == budget
    assert all(id_.startswith("train") for id_ in ids)
    assert len(data.questions(data.test_names[0])) == 11
    other = JSONLDataModule(path=str(question_folder), labels=budget, seed=2)
    assert ids != {question.id for question in other.train_questions + other.val_questions} or budget == 37


@pytest.mark.parametrize("budget", [0, 1, 38])
def test_a_budget_out_of_range(question_folder: Path, budget: int) -> None:
    with pytest.raises(UsageError, match=rf"labels is {budget}; allowed .* 2 to 37"):
        JSONLDataModule(path=str(question_folder), labels=budget).setup("fit")


@pytest.mark.parametrize(("calibration", "count"), [(0.25, 8), (8, 8), (8.0, 8)])
def test_a_calibration_part_of_the_budget_leaves_the_rest_as_a_smaller_budget(
    question_folder: Path, calibration: float, count: int
) -> None:
    data = JSONLDataModule(path=str(question_folder), labels=30, calibration=calibration, seed=1)
    smaller = JSONLDataModule(path=str(question_folder), labels=30 - count, seed=1)
    assert len(data.calibration_questions) == data.report()["n_calibration"] == count
    assert smaller.calibration_questions == []
    assert data.train_questions == smaller.train_questions
    assert data.val_questions == smaller.val_questions
    parts = [*data.train_questions, *data.val_questions, *data.calibration_questions]
    assert len({question.id for question in parts}) == 30
    assert data.fingerprint != smaller.fingerprint
    assert sum(len(batch) for batch in data.calibration_dataloader()) == count


def test_a_calibration_part_of_whole_splits(question_folder: Path) -> None:
    data = JSONLDataModule(path=str(question_folder), calibration=0.2)
    assert [len(data.questions(name)) for name in ("train", "validation", "calibration")] == [29, 10, 8]
    again = JSONLDataModule(path=str(question_folder), calibration=0.2)
    other = JSONLDataModule(path=str(question_folder), calibration=0.2, seed=1)
    assert data.calibration_questions == again.calibration_questions != other.calibration_questions


def test_a_file_of_that_name_is_the_calibration_part(question_folder: Path) -> None:
    row = (question_folder / "train.jsonl").read_text().splitlines()[4]
    (question_folder / "calibration.jsonl").write_text(row.replace("train4", "again") + "\n")
    for given in (None, "calibration"):
        data = JSONLDataModule(path=str(question_folder), calibration=given)
        assert [question.id for question in data.calibration_questions] == ["again"]
        assert len(data.train_questions) == 37
        assert data.report()["in_train_and_calibration"] == [("train4", "again")]


@pytest.mark.parametrize(
    ("calibration", "message"),
    [
        (0, "calibration is 0; allowed: a share below 1, or 1 to 35 of these 37 questions"),
        (36, "calibration is 36; allowed"),
        (1.5, "calibration is 1.5; allowed"),
        ("test", "calibration is 'test'; allowed: a share below 1, a number of questions"),
        ("nowhere", "calibration is 'nowhere'; allowed"),
    ],
)
def test_calibration_parts_that_cannot_be(question_folder: Path, calibration: float | str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        JSONLDataModule(path=str(question_folder), calibration=calibration).setup("fit")


def test_fingerprint_follows_what_is_used(question_folder: Path) -> None:
    first, same = (JSONLDataModule(path=str(question_folder)).fingerprint for _ in range(2))
    assert first == same
    assert len(first) == 64
    assert JSONLDataModule(path=str(question_folder), labels=20).fingerprint != first
    path = question_folder / "test.jsonl"
    path.write_text(path.read_text().replace("sun", "sung"))
    assert JSONLDataModule(path=str(question_folder)).fingerprint != first


def test_duplicates_between_train_and_test_are_reported(question_folder: Path, byte_level: object) -> None:
    row = (question_folder / "train.jsonl").read_text().splitlines()[4]
    with (question_folder / "test.jsonl").open("a") as file:
        file.write(row.replace("train4", "again") + "\n")
    data = JSONLDataModule(path=str(question_folder), tokenizer=byte_level)
    assert data.report()["in_train_and_test"] == [("train4", "again")]


def test_a_test_set_can_be_cut_to_a_draw_that_all_seeds_share(question_folder: Path) -> None:
    data = JSONLDataModule(path=str(question_folder), max_test=4)
    drawn = [question.id for question in data.questions(data.test_names[0])]
    everything = JSONLDataModule(path=str(question_folder))
    whole = [question.id for question in everything.questions(everything.test_names[0])]
    assert len(drawn) == 4
    assert drawn == [id_ for id_ in whole if id_ in drawn] != whole[:4]
    other = JSONLDataModule(path=str(question_folder), max_test=4, seed=9)
    assert [question.id for question in other.questions(other.test_names[0])] == drawn
    assert len(data.train_questions) == 37
    with pytest.raises(UsageError, match="max_test is 0; allowed: 1 or more"):
        JSONLDataModule(path=str(question_folder), max_test=0)
