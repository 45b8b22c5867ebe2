"""From the files of a training to tables, plots and the command line; what does not belong together is refused."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from bayeslora.cli import main
from bayeslora.commands.dynamics import analyse, dynamics
from bayeslora.errors import UsageError
from bayeslora.metrics.answers import UNKNOWN, Answers
from bayeslora.results.dynamics import tables
from bayeslora.results.dynamics.course import Course, Epoch, join_courses, read_course
from bayeslora.results.dynamics.plots import density, save_plots
from bayeslora.results.prediction_file import PredictionFile, write_predictions

SETS = ("test", "ood", "validation")
SURE = torch.tensor([0.97, 0.01, 0.01, 0.01], dtype=torch.float64)


def answers(choices: list[list[int]], label: list[int]) -> Answers:
    """Members that are nearly sure of their choices ``[N][M]``."""
    members = torch.stack([torch.stack([SURE.roll(c) for c in row]) for row in choices])
    ids = [f"q{n}" for n in range(len(label))]
    return Answers(members.mean(1), torch.tensor(label), torch.full((len(label),), 4), members=members, example_id=ids)


def course(choices: dict[int, list[list[int]]], label: list[int], method: str = "ensemble") -> Course:
    """The same answers to every set; epoch to choices."""
    cosine = torch.tensor([[1.0, 0.2], [0.2, 1.0]])
    epochs = [
        Epoch(number, dict.fromkeys(SETS, answers(rows, label)), cosine if number else cosine * torch.nan)
        for number, rows in choices.items()
    ]
    return Course(epochs, method, 3)


def agreed(*choices: int) -> list[list[int]]:
    return [[choice, choice] for choice in choices]


# by epoch 3 question 0 (known from the start) is retained, 1 lost again, 2 forgotten, 3 never right
STORY = course({0: agreed(0, 1, 0, 1), 1: agreed(0, 0, 0, 2), 2: agreed(0, 0, 0, 1), 3: agreed(0, 2, 1, 1)}, [0] * 4)


def write(given: Course, run: Path) -> Path:
    """What the callback leaves of a training."""
    for epoch in given.epochs:
        file = run / "dynamics" / f"epoch-{epoch.number:03d}.parquet"
        write_predictions(PredictionFile(epoch.datasets, given.method, given.seed), file)
        cosine = [[None if value != value else value for value in row] for row in epoch.cosine.tolist()]
        record = {"schema": 1, "epoch": epoch.number, "step": 0, "weights": "", "members": [0, 1], "cosine": cosine}
        file.with_suffix(".json").write_text(json.dumps(record))
    return run


def row(rows: list[tables.Row], **where: object) -> tables.Row:
    (found,) = [row for row in rows if all(row[key] == value for key, value in where.items())]
    return found


def test_retention_tells_the_story() -> None:
    assert STORY.best.number == 1  # as good as epoch 2, and earlier
    rows = tables.retention_table(STORY)
    end = row(rows, dataset="ood", epoch=3)
    assert [end[cell] for cell in ("retained", "acquired", "forgotten", "never")] == [0.25, 0, 0.25, 0.5]
    assert end["kept"] == pytest.approx(1 / 3)
    assert end["kept_acquired"] == 0
    assert (end["flips"], end["churn"]) == (0.5, 0.5)
    middle = row(rows, dataset="ood", epoch=2)
    assert (middle["kept"], middle["kept_acquired"], middle["flips"], middle["churn"]) == (1, 1, 0, 0.25)
    entropy = float(torch.special.entr(SURE).sum())
    assert end["never_total"] == pytest.approx(entropy)
    assert end["acquired_total"] is None
    assert row(rows, dataset="ood", epoch=1)["kept"] is None


def test_difficulty_ranks_by_the_entropy_that_is_left() -> None:
    sure, doubted, wrong = (answers(rows, [0, 0]) for rows in (agreed(0, 0), [[0, 1], [0, 1]], agreed(1, 1)))
    base = Epoch(0, {"sure": doubted, "doubted": doubted, "validation": wrong})
    end = Epoch(1, {"sure": sure, "doubted": doubted, "validation": sure})
    rows = tables.difficulty_table(Course([base, end], "m"))
    assert [found["dataset"] for found in rows] == ["doubted", "sure"]
    assert rows[0]["entropy_left"] == pytest.approx(1)
    assert rows[1]["entropy_left"] == pytest.approx(float(sure.total.mean() / doubted.total.mean()))
    assert rows[0]["share_best"] == pytest.approx(float(doubted.epistemic.mean() / doubted.total.mean()))
    overfit = Epoch(2, {"sure": doubted, "doubted": sure, "validation": wrong})
    again = tables.difficulty_table(Course([base, end, overfit], "m"))  # what comes after the best epoch does not count
    assert [(found["dataset"], found["entropy_left"]) for found in again] == [
        (found["dataset"], found["entropy_left"]) for found in rows
    ]


def test_a_course_is_read_as_it_was_written(tmp_path: Path) -> None:
    for folder in (write(STORY, tmp_path), tmp_path / "dynamics"):
        found = read_course(folder)
        assert (found.numbers, found.datasets, found.method, found.seed) == ([0, 1, 2, 3], list(SETS), "ensemble", 3)
        assert torch.equal(found.of("ood")[3].members, STORY.of("ood")[3].members)
        assert found.epochs[0].cosine.isnan().all()
    (tmp_path / "dynamics" / "epoch-003.json").unlink()  # not marked as whole
    assert read_course(tmp_path).numbers == [0, 1, 2]


def test_single_runs_join_to_the_ensemble_of_their_members() -> None:
    alone = [
        Course([replace(e, datasets={n: _member(a, m) for n, a in e.datasets.items()}) for e in STORY.epochs], "mle")
        for m in range(2)
    ]
    whole = join_courses(alone)
    for mine, theirs in zip(whole.of("ood"), STORY.of("ood"), strict=True):
        assert torch.equal(mine.members, theirs.members)
        torch.testing.assert_close(mine.probs, theirs.probs)
    with pytest.raises(UsageError, match="different epochs or sets"):
        join_courses([alone[0], replace(alone[1], epochs=alone[1].epochs[:2])])


def _member(given: Answers, m: int) -> Answers:
    return replace(given, members=given.members[:, m : m + 1], probs=given.members[:, m])


def test_diversity_leaves_out_the_base_where_there_is_no_direction() -> None:
    rows = tables.diversity_table(STORY)
    assert [found["epoch"] for found in rows] == [1, 2, 3]
    assert rows[0]["cosine"] == rows[0]["lowest"] == rows[0]["highest"] == pytest.approx(0.2)


def test_validation_alone_can_be_followed(tmp_path: Path) -> None:
    alone = [replace(epoch, datasets={"validation": epoch.datasets["validation"]}) for epoch in STORY.epochs]
    write(replace(STORY, epochs=alone), tmp_path)
    assert main(["dynamics", str(tmp_path)]) == 0
    found = json.loads((tmp_path / "dynamics" / "analysis" / "dynamics.json").read_text())["tables"]
    assert [row["dataset"] for row in found["quality"]] == ["validation"] * 4
    assert found["detection"] == found["difficulty"] == []  # there is no test set to rank or to tell another from


def test_the_command_writes_tables_that_say_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(STORY, tmp_path)
    assert main(["dynamics", str(tmp_path)]) == 0
    out = tmp_path / "dynamics" / "analysis"
    found = json.loads((out / "dynamics.json").read_text())
    assert (found["members"], found["best_epoch"], found["chosen_by"]) == (2, 1, "validation")
    for name, rows in found["tables"].items():
        kept = list(csv.DictReader((out / f"{name}.csv").open()))
        assert len(kept) == len(rows)
        assert list(kept[0]) == list(rows[0])
        assert f"## {name}\n" in (out / "dynamics.md").read_text()
    assert row(found["tables"]["detection"], dataset="ood", epoch=3)["total"] == 0.5
    assert len(list(out.glob("*.png"))) == 7 + len(SETS)
    assert "hardest first" in capsys.readouterr().out
    before = (out / "dynamics.json").read_bytes()
    assert main(["dynamics", str(tmp_path)]) == 2
    assert "already holds files; give another --out, or --overwrite" in capsys.readouterr().err
    dynamics([tmp_path], overwrite=True, plots=False)
    assert (out / "dynamics.json").read_bytes() == before


def test_one_member_one_set_and_two_epochs_are_enough(tmp_path: Path) -> None:
    only = {"test": _member(answers(agreed(0, 1, 2), [0, 0, 2]), 0)}
    given = Course([Epoch(0, only), Epoch(1, only)], "mle")
    found = analyse(given, resamples=10)
    assert found["chosen_by"] == "test"
    assert found["tables"]["detection"] == found["tables"]["diversity"] == []
    assert all(file.stat().st_size > 10_000 for file in save_plots(given, found, tmp_path))


def test_densities_show_the_base_the_best_and_the_last_epoch() -> None:
    titles = [axes.get_title() for axes in density(STORY, "ood").axes for axes in axes.child_axes]
    assert [title for title in titles if title.startswith(("epoch 0", "epoch 1", "epoch 3"))] == [
        "epoch 0: 2 right", "epoch 1: 3 right", "epoch 3: 1 right",
        "epoch 0: 2 wrong", "epoch 1: 1 wrong", "epoch 3: 3 wrong",
    ]  # fmt: skip


def test_what_does_not_belong_together_is_refused_in_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["dynamics", str(tmp_path / "none")]) == 2
    assert "no epochs in" in capsys.readouterr().err
    write(replace(STORY, epochs=STORY.epochs[1:]), tmp_path / "late")
    with pytest.raises(UsageError, match="starts with epoch 1 and lacks the base model, epoch 0"):
        read_course(tmp_path / "late")
    other = dict.fromkeys(SETS, answers(agreed(0, 1, 0, 1), [0, 1, 0, 0]))
    write(replace(STORY, epochs=[*STORY.epochs[:3], replace(STORY.epochs[3], datasets=other)]), tmp_path / "mixed")
    with pytest.raises(UsageError, match=r"test of epochs 0 and 3 in .* has different questions"):
        read_course(tmp_path / "mixed")
    fewer = {"test": other["test"]}
    write(replace(STORY, epochs=[*STORY.epochs[:3], replace(STORY.epochs[3], datasets=fewer)]), tmp_path / "fewer")
    with pytest.raises(UsageError, match=r"epochs 0 and 3 in .* hold different sets"):
        read_course(tmp_path / "fewer")
    unknown = answers(agreed(0, 1), [UNKNOWN, 0])
    write(replace(STORY, epochs=[Epoch(0, {"test": unknown}, STORY.epochs[0].cosine)]), tmp_path / "unknown")
    with pytest.raises(UsageError, match=r"1 questions of test in .* have no label; give Dynamics a label_fn"):
        read_course(tmp_path / "unknown")
    gaussian = replace(
        answers(agreed(0), [0]), members=None, logit_mean=torch.zeros(1, 3), logit_cov=torch.eye(3)[None]
    )
    write(replace(STORY, epochs=[Epoch(0, {"test": gaussian}, STORY.epochs[0].cosine)]), tmp_path / "gaussian")
    with pytest.raises(UsageError, match="is a Gaussian over logits; dynamics are those of members"):
        read_course(tmp_path / "gaussian")
    record = tmp_path / "late" / "dynamics" / "epoch-001.json"
    record.write_text(json.dumps({"schema": 99}))
    with pytest.raises(UsageError, match="has schema 99; this version reads schema 1"):
        read_course(tmp_path / "late")
