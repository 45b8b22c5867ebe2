"""Published numbers beside ours: each has a source and a status, and one that nobody has checked has a mark."""

from pathlib import Path

import pytest
import torch

from bayeslora.errors import UsageError
from bayeslora.results.comparison.comparison import Comparison, Run
from bayeslora.results.comparison.page import page
from bayeslora.results.comparison.published import read_published
from tests.helpers.equal_rows import equal_rows
from tools.layout import ROOT

HEAD = "dataset,method,metric,value,source,status\n"


def test_ours_theirs_and_the_difference(tmp_path: Path) -> None:
    (run,) = equal_rows(1, torch.Generator().manual_seed(0), seeds=1)["0"]
    comparison = Comparison([Run(Path("x"), "mle", 0, {"arc": run, "mmlu:law": run}, {})], "mle")
    file = tmp_path / "published.csv"
    file.write_text(HEAD + "own,mle,nll,0.5,A paper,verified\nown,blob,nll,0.25,A paper,unverified\n")
    ours, absent = read_published(file, {"own": comparison})
    summary = comparison.summary("mle", "arc", "nll")
    assert summary is not None
    assert ours.difference_value == pytest.approx(summary.mean - 0.5)
    assert (ours.theirs, absent.theirs) == ("0.500", "0.250 (unverified)")
    assert (absent.ours, absent.difference, absent.difference_value) == ("-", "-", None)
    text = page("", [], published=[ours, absent])
    assert "0.250 (unverified)" in text
    assert "None" not in text


def test_a_test_set_is_named_behind_its_dataset(tmp_path: Path) -> None:
    """As ``obqa/mmlu:law``: trained on one and tested on the other."""
    (own, other) = equal_rows(2, torch.Generator().manual_seed(0), seeds=1).values()
    comparison = Comparison([Run(Path("x"), "mle", 0, {"arc": own[0], "mmlu:law": other[0]}, {})], "mle")
    (tmp_path / "p.csv").write_text(HEAD + "own/mmlu:law,mle,nll,0.5,A,verified\nown/mmlu:cs,mle,nll,0.5,A,verified\n")
    ours, absent = read_published(tmp_path / "p.csv", {"own": comparison})
    summary = comparison.summary("mle", "mmlu:law", "nll")
    assert summary is not None
    assert ours.ours_value == summary.mean
    assert absent.ours_value is None


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("own,mle,nll,0.5,,verified", "line 2: source is ''"),
        ("own,mle,nll,0.5,A paper,maybe", "status is 'maybe'; allowed: verified, unverified"),
        ("own,mle,nll,half,A paper,verified", "value is 'half'; allowed: a number"),
    ],
)
def test_a_number_without_a_source_or_a_status_is_refused(line: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text(HEAD + line + "\n")
    with pytest.raises(UsageError, match=message):
        read_published(tmp_path / "p.csv", {})
    with pytest.raises(UsageError, match="give a CSV file with the columns"):
        read_published(tmp_path / "none.csv", {})


def test_the_shipped_numbers_are_read() -> None:
    for file in (ROOT / "bayeslora" / "configs" / "papers").rglob("published*.csv"):
        found = read_published(file, {})
        assert found
        assert all(0 <= number.theirs_value < 5 for number in found)
