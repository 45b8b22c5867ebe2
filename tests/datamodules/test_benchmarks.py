"""Every loader against every file of the benchmarks' folder."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bayeslora.datamodules import (
    ARCDataModule,
    BoolQDataModule,
    CommonsenseQADataModule,
    MMLUDataModule,
    MultipleChoiceDataModule,
    OpenBookQADataModule,
    WinoGrandeDataModule,
)
from bayeslora.datamodules.mmlu_subjects import GROUPS, SIZES
from bayeslora.datamodules.registry import get_benchmark
from bayeslora.datamodules.splits import shared_questions
from bayeslora.errors import UsageError

NAMES = ["arc_easy", "arc_challenge", "obqa", "csqa", "winogrande_s", "winogrande_m", "boolq"]
MAKERS: dict[str, Callable[..., MultipleChoiceDataModule]] = {
    "arc_easy": ARCDataModule,
    "arc_challenge": lambda **kw: ARCDataModule(config="ARC-Challenge", **kw),
    "obqa": OpenBookQADataModule,
    "csqa": CommonsenseQADataModule,
    "winogrande_s": WinoGrandeDataModule,
    "winogrande_m": lambda **kw: WinoGrandeDataModule(size="m", **kw),
    "boolq": BoolQDataModule,
    "mmlu:law+anatomy": lambda **kw: MMLUDataModule(subjects=["law", "anatomy"], **kw),
}
COUNTS = {  # protocol, benchmark: train, validation, test
    ("default", "csqa"): (7792, 1949, 1221),
    ("default", "winogrande_s"): (512, 128, 1267),
    ("default", "boolq"): (7541, 1886, 3270),
    ("default", "mmlu:stem"): (344, 86, 3153),
    ("laplace_lora", "arc_easy"): (2241, 567, 567),
    ("laplace_lora", "arc_challenge"): (1117, 295, 295),
    ("swag_lora", "arc_easy"): (2241, 567, 2365),
    ("swag_lora", "arc_challenge"): (1117, 295, 1165),
    ("swag_lora", "csqa"): (7792, 1949, 1221),
    ("blob", "arc_easy"): (2251, 560, 560),  # of 570, in full batches of 16
    ("blob", "winogrande_m"): (2558, 1264, 1264),  # of 1,267, likewise
    ("lora_ensembles", "csqa"): (9741, 1221, 1221),
    ("lora_ensembles", "mmlu:stem"): (430, 3153, 3153),
    ("lora_ensembles", "mmlu:social_sciences"): (397, 3077, 3077),
}


def rows_of(path: Path) -> list[dict[str, Any]]:
    with path.open() as file:
        return [json.loads(line) for line in file]


def plain(row: dict[str, Any]) -> tuple[str, tuple[str, ...], int]:
    """Question, options and label of a row of any benchmark, read in another way than the package does."""
    if "sentence" in row:
        return row["sentence"], (row["option1"], row["option2"]), int(row["answer"]) - 1
    if "passage" in row:
        return row["question"], ("No", "Yes"), 1 if row["answer"] else 0
    if "subject" in row:
        return row["question"], tuple(row["choices"]), row["answer"]
    text = row.get("question_stem") or row["question"]
    by_label = dict(zip(row["choices"]["label"], row["choices"]["text"], strict=True))
    return text, tuple(by_label.values()), list(by_label).index(row["answerKey"])


@pytest.mark.parametrize("name", [*NAMES, "mmlu:all"])
def test_every_row_of_every_file_is_read(name: str, data_dir: str) -> None:
    benchmark = get_benchmark(name)
    folders = [f"mmlu/{subject}" for subject in SIZES] if name == "mmlu:all" else [benchmark.folder]
    for split, size in benchmark.sizes.items():
        rows = [row for folder in folders for row in rows_of(Path(data_dir) / folder / f"{split}.jsonl")]
        questions = benchmark.load(split, data_dir)
        assert len(questions) == len(rows) == size
        assert [(q.question, q.options, q.label) for q in questions] == [plain(row) for row in rows]
        assert len({q.id for q in questions}) == size
    if name == "boolq":
        assert questions[0].context == rows[0]["passage"]


def test_mmlu_sizes_and_groups() -> None:
    assert len(SIZES) == 57
    assert get_benchmark("mmlu:all").sizes == {"dev": 285, "validation": 1531, "test": 14042}
    assert {name: len(group) for name, group in GROUPS.items()} == {
        **{"all": 57, "cs": 4, "eng": 1, "law": 3, "health": 7, "chemistry": 1, "physics": 1},
        **{"stem": 19, "social_sciences": 12},
    }
    assert all(set(group) <= set(SIZES) for group in GROUPS.values())
    assert len(get_benchmark("mmlu:anatomy+health").subjects) == 7  # type: ignore[attr-defined]
    with pytest.raises(UsageError, match=r"subject of MMLU is 'alchemy'; allowed: the groups all, cs, .* anatomy"):
        MMLUDataModule(subjects=["law", "alchemy"])
    with pytest.raises(UsageError, match="subjects is empty"):
        MMLUDataModule(subjects=[])


@pytest.mark.parametrize("protocol, name", COUNTS)
def test_counts_of_each_protocol(protocol: str, name: str, data_dir: str) -> None:
    make = MAKERS.get(name) or (lambda **kw: MMLUDataModule(subjects=[name.removeprefix("mmlu:")], **kw))
    data = make(data_dir=data_dir, protocol=protocol)
    counts = (len(data.train_questions), len(data.val_questions), len(data.questions(data.test_names[0])))
    assert counts == COUNTS[protocol, name]


@pytest.mark.parametrize("name", MAKERS)
def test_no_test_question_is_trained_or_validated_on(name: str, data_dir: str) -> None:
    data = MAKERS[name](data_dir=data_dir)
    test = data.questions(data.test_names[0])
    known = {"arc_easy": 2}.get(name, 0)  # duplicates as published
    assert len(shared_questions(data.train_questions, test)) == known
    assert not {q.id for q in data.val_questions} & {q.id for q in data.train_questions}
    if data.protocol.splits(data.benchmark).validation is None:
        assert not {q.id for q in test} & {q.id for q in data.train_questions + data.val_questions}


@pytest.mark.parametrize(
    "name, tokenizer",
    [
        ("arc_challenge", "mistral_v1"),
        ("csqa", "llama2"),
        ("winogrande_m", "mistral_v1"),
        ("boolq", "llama2"),
        ("mmlu:law+anatomy", "mistral_v1"),
    ],
)
def test_every_test_question_comes_once_and_fits(
    name: str, tokenizer: str, data_dir: str, real_tokenizer: Callable[[str], Any]
) -> None:
    data = MAKERS[name](data_dir=data_dir, tokenizer=real_tokenizer(tokenizer), eval_batch_size=64, max_length=700)
    (loader,) = data.test_dataloader()
    questions = data.questions(data.test_names[0])
    seen: list[int] = []
    for batch in loader:
        seen += batch.example_id.tolist()
        assert batch.input_ids.shape[1] <= 700
        assert batch.answer_mask.sum(-1).tolist() == [len(questions[i].options) for i in batch.example_id.tolist()]
        assert batch.label.tolist() == [questions[i].label for i in batch.example_id.tolist()]
    assert sorted(seen) == list(range(len(questions)))
    cut = sum(encoded.cut for encoded in data.encoded(data.test_names[0]))
    assert (cut > 0) == (name in ("boolq", "mmlu:law+anatomy"))


def test_ood_sets_come_after_the_test_set_in_the_order_given(
    data_dir: str, real_tokenizer: Callable[[str], Any]
) -> None:
    ood = ["mmlu:anatomy", "csqa", "synthetic:shifted"]
    data = OpenBookQADataModule(data_dir=data_dir, ood=ood, tokenizer=real_tokenizer("llama2"))
    assert data.test_names == ["obqa", *ood]
    loaders = data.test_dataloader()
    assert [next(iter(loader)).dataset for loader in loaders] == data.test_names
    assert [len(data.questions(name)) for name in data.test_names] == [500, 135, 1221, 2000]
