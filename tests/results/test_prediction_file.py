"""The predictions file: what is written is what is read, and a damaged file is refused in one line."""

import json
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from bayeslora.errors import UsageError
from bayeslora.metrics.answers import UNKNOWN, Answers
from bayeslora.results.prediction_file import PredictionFile, read_predictions, write_predictions
from bayeslora.types import Predictive

ABSENT = -torch.inf


def members(n: int = 40, s: int = 3, seed: int = 0) -> Answers:
    """Answers of an ensemble to questions of two to five options."""
    generator = torch.Generator().manual_seed(seed)
    options = torch.randint(2, 6, (n,), generator=generator)
    options[0] = 5
    logits = torch.randn(s, n, 5, generator=generator).masked_fill(torch.arange(5) >= options[:, None], ABSENT)
    label = (torch.rand(n, generator=generator) * options).long()
    answers = Answers.from_predictive(Predictive.from_logits(logits, logits.logsumexp(-1) + 0.1), label)
    return replace(answers, true_probs=answers.probs.clone(), example_id=[f"q{i}" for i in range(n)])


def gaussian(n: int = 6) -> Answers:
    """Answers of a Gaussian method to questions of three and four options."""
    root = torch.randn(n, 3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    mean, cov = root.sum(-1), root @ root.mT
    mean[0, 2], cov[0, 2], cov[0, :, 2] = ABSENT, 0, 0
    answers = Answers.from_predictive(Predictive.from_gaussian(mean, cov), torch.zeros(n))
    return replace(answers, example_id=[f"g{i}" for i in range(n)])


def rewritten(path: Path, change) -> Path:
    """The file with its table changed and its metadata kept."""
    table = pq.read_table(path)
    pq.write_table(change(table).replace_schema_metadata(table.schema.metadata), path)
    return path


def with_column(name: str, function):
    def change(table: pa.Table) -> pa.Table:
        values = function(table[name].to_pylist())
        index = table.schema.get_field_index(name)
        return table.set_column(index, name, pa.array(values, table.schema.field(name).type))

    return change


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "test" / "predictions.parquet"
    write_predictions(PredictionFile({"id": members(), "other": members(7, seed=1)}, "ensemble", 3), path)
    return path


def test_what_is_written_is_read(path: Path) -> None:
    read = read_predictions(path)
    assert (read.method, read.seed, list(read.datasets)) == ("ensemble", 3, ["id", "other"])
    for name, want in {"id": members(), "other": members(7, seed=1)}.items():
        got = read.datasets[name]
        assert list(got.example_id) == want.example_id
        assert got.tensors().keys() == want.tensors().keys()
        for key, tensor in want.tensors().items():
            assert torch.equal(getattr(got, key), tensor), key


def test_gaussians_and_members_each_leave_the_other_columns_null(tmp_path: Path) -> None:
    path = tmp_path / "predictions.parquet"
    want = gaussian()
    write_predictions(PredictionFile({"id": want}, "laplace"), path)
    columns = pq.read_table(path)
    assert columns["member_probs"].null_count == len(want)
    assert columns["logit_cov"].null_count == 0
    assert [len(row) for row in columns["probs"].to_pylist()][:2] == [3, 4]
    assert [len(row) for row in columns["logit_cov"].to_pylist()][:2] == [2, 3]
    got = read_predictions(path).datasets["id"]
    for key, tensor in want.tensors().items():
        assert torch.equal(getattr(got, key), tensor), key
    assert torch.equal(got.epistemic, want.epistemic)
    assert got.n_members is None
    assert not got.true_probs


def test_unknown_labels_are_null(tmp_path: Path) -> None:
    path = tmp_path / "predictions.parquet"
    answers = members()
    answers.label[3] = UNKNOWN
    write_predictions(PredictionFile({"id": answers}, "mle"), path)
    assert pq.read_table(path)["label"].to_pylist()[3] is None
    assert torch.equal(read_predictions(path).datasets["id"].label, answers.label)


def test_a_failed_write_leaves_the_old_file_and_no_other(path: Path) -> None:
    before = path.read_bytes()
    broken = replace(members(), example_id=["too", "few"])
    with pytest.raises(pa.ArrowInvalid):
        write_predictions(PredictionFile({"id": broken}, "mle"), path)
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def doubled(table: pa.Table) -> pa.Table:
    return pa.concat_tables([table.slice(0, 1), table.slice(0, 1), table.slice(2)])


DAMAGE = {
    "repeated (q0)": doubled,
    "6 examples where there should be 7": lambda table: table.slice(0, len(table) - 1),
    "without valid probs that sum to one, the first is q1": with_column(
        "probs", lambda rows: [rows[0], [p * 1.01 for p in rows[1]], *rows[2:]]
    ),
    "without valid members that sum to one": with_column(
        "member_probs", lambda rows: [[[float("nan")] * len(row) for row in rows[0]], *rows[1:]]
    ),
    "without valid label, the first is q0": with_column("label", lambda rows: [5, *rows[1:]]),
    "column member_probs has another number of options": with_column(
        "member_probs", lambda rows: [[[*row, 0.0] for row in rows[0]], *rows[1:]]
    ),
    "column member_probs: lists within a row differ": with_column(
        "member_probs", lambda rows: [[[1.0], *rows[0][1:]], *rows[1:]]
    ),
    "column probs: 1 lists are null or empty": with_column("probs", lambda rows: [None, *rows[1:]]),
    "there are no probs": with_column("probs", lambda rows: [None] * len(rows)),
    "datasets other than id, other": lambda table: pa.concat_tables(
        [table, with_column("dataset", lambda rows: ["new"] * len(rows))(table)]
    ),
}


@pytest.mark.parametrize("message", DAMAGE)
def test_damage_is_refused_in_one_line(path: Path, message: str) -> None:
    with pytest.raises(UsageError) as refusal:
        read_predictions(rewritten(path, DAMAGE[message]))
    assert message in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_files_of_others_are_refused(path: Path, tmp_path: Path) -> None:
    table = pq.read_table(path)
    header = json.loads(table.schema.metadata[b"bayeslora"]) | {"schema": 99}
    pq.write_table(table.replace_schema_metadata({"bayeslora": json.dumps(header)}), path)
    with pytest.raises(UsageError, match="is damaged"):
        read_predictions(path)
    del header["sha256"]
    pq.write_table(table.replace_schema_metadata({"bayeslora": json.dumps(header)}), path)
    with pytest.raises(UsageError, match="schema 99; this version reads schema 1"):
        read_predictions(path)
    pq.write_table(table.replace_schema_metadata({}), path)
    with pytest.raises(UsageError, match="not written by bayeslora"):
        read_predictions(path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UsageError, match="damaged or no parquet file"):
        read_predictions(path)
    with pytest.raises(UsageError, match="no predictions at"):
        read_predictions(tmp_path / "absent.parquet")
