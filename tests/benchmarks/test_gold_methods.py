"""Distances are what they are by hand, and the commands leave what they say: one small setting, and its tables."""

import json
import math
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(autouse=True)
def path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))


def test_distances_by_hand() -> None:
    from gold.distance import distances

    gold = torch.tensor([[0.5, 0.5], [0.9, 0.1]], dtype=torch.float64)
    probs = torch.tensor([[0.7, 0.3], [0.2, 0.8]], dtype=torch.float64)
    truth = torch.tensor([[1.0, 0.0], [0.5, 0.5]], dtype=torch.float64)
    found = distances(probs, torch.tensor([0.1, 0.3]), gold, torch.tensor([0.2, 0.9]), truth)
    assert found["tv"] == pytest.approx((0.2 + 0.7) / 2)
    assert found["agreement"] == 0.5
    divergences = [
        0.5 * math.log(0.5 / 0.7) + 0.5 * math.log(0.5 / 0.3),
        0.9 * math.log(0.9 / 0.2) + 0.1 * math.log(0.1 / 0.8),
    ]
    assert found["kl"] == pytest.approx(sum(divergences) / 2)
    assert found["mi_correlation"] == pytest.approx(1)
    assert found["mi"] == pytest.approx(0.2)
    assert found["nll"] == pytest.approx(-(math.log(0.7) + 0.5 * math.log(0.2) + 0.5 * math.log(0.8)) / 2)
    assert found["accuracy"] == pytest.approx((1 + 0.5) / 2)


def test_nothing_is_as_near_as_the_gold_itself_and_a_point_ranks_nothing() -> None:
    from gold.distance import distances

    gold = torch.rand(5, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64).softmax(-1)
    found = distances(gold, torch.zeros(5), gold, torch.rand(5), gold)
    assert found["tv"] == 0
    assert found["kl"] == pytest.approx(0, abs=1e-12)
    assert found["agreement"] == 1
    assert found["mi_correlation"] is None


def test_members_are_averaged_and_their_disagreement_measured() -> None:
    from gold.distance import mixed

    members = torch.tensor([[[1.0, 0.0], [0.5, 0.5]], [[0.0, 1.0], [0.5, 0.5]]], dtype=torch.float64)
    probs, epistemic = mixed(members)
    assert probs.tolist() == [[0.5, 0.5], [0.5, 0.5]]
    assert epistemic.tolist() == pytest.approx([math.log(2), 0])


def test_rows_have_priors_of_the_golds_size() -> None:
    from gold.methods import METHODS, options_of
    from gold.setting import Setting

    named = {name: " ".join(options_of(method, Setting())) for name, method in METHODS.items()}
    assert all("prior_std=0.3" in named[name] for name in ("map", "bbb", "blob"))
    assert all("precision=11.1" in named[name] for name in ("laplace_prior", "laplace_refit_prior"))
    assert f"weight_decay={1 / (40 * 0.09)}" in named["ivon"]
    assert "max_epochs=100" in named["mle"]  # of three steps each


def test_both_layers_can_have_adapters(tmp_path: Path) -> None:
    pytest.importorskip("arviz")
    import gold_posterior

    for part in ("gold", "methods"):
        gold_posterior.main([part, "--small", "--layers", "2", "--seeds", "0", "--out", str(tmp_path), "--rows", "mle"])
    folder = tmp_path / "labels-10-r1-AB-layers-2" / "seed-0"
    assert json.loads((folder / "gold.json").read_text())["weights"] == 1024
    assert (folder / "scores" / "mle.json").exists()


def test_commands_leave_gold_scores_and_tables(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("arviz")
    import gold_posterior

    common = ["--small", "--seeds", "0", "--out", str(tmp_path), "--rows", "base", "mle", "laplace_prior"]
    for part in ("gold", "methods", "methods", "table"):
        gold_posterior.main([part, *common])
    folder = tmp_path / "labels-10-r1-AB" / "seed-0"
    record = json.loads((folder / "gold.json").read_text())
    assert record["weights"] == 512
    assert not record["converged"]  # of eight draws a chain
    scores = {file.stem: json.loads(file.read_text()) for file in (folder / "scores").glob("*.json")}
    assert set(scores) == {"base", "mle", "laplace_prior"}
    assert scores["laplace_prior"]["synthetic"]["mi"] > scores["mle"]["synthetic"]["mi"] == 0
    output = capsys.readouterr().out
    assert output.count("s of CPU") == 4  # what is there is not made again
    assert "not converged" in output
    for row in ("gold", *scores):
        assert output.count(f"\n| {row} |") == 2
    assert (tmp_path / "gold.png").stat().st_size > 10_000
