"""The study's rule and its means, on hand-made results."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

DOMAINS = ("easy", "noisy", "hard")


@pytest.fixture
def study(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    import dynamics_synthetic

    return dynamics_synthetic


def run(
    left: dict[str, float], mutual: dict[str, float], values: tuple[float | None, ...] = (1.0, 2.0)
) -> dict[str, Any]:
    """One seed's result, with base entropies of one."""
    rows = [
        {
            "dataset": f"synthetic:{domain}",
            "entropy_left": left[domain],
            "entropy_best": left[domain],
            "entropy_last": 0.5,
            "epistemic_best": mutual[domain],
            "epistemic_last": 0.25,
            "share_best": mutual[domain] / left[domain],
            "share_last": 0.5,
        }
        for domain in DOMAINS
    ]
    quality = [{"dataset": "synthetic", "epoch": epoch, "nll": value} for epoch, value in enumerate(values)]
    return {"tables": {"difficulty": rows, "quality": quality}}


FOUND = run({"easy": 0.4, "noisy": 0.5, "hard": 0.9}, {"easy": 0.1, "noisy": 0.2, "hard": 0.1})
SWAPPED = run({"easy": 0.4, "noisy": 0.9, "hard": 0.8}, {"easy": 0.1, "noisy": 0.2, "hard": 0.3})
EASY = run({"easy": 0.4, "noisy": 0.5, "hard": 0.9}, {"easy": 0.3, "noisy": 0.2, "hard": 0.1})


def test_the_rule_names_what_it_finds(study: ModuleType) -> None:
    assert study.named(FOUND) == (True, True)
    assert study.named(SWAPPED) == (False, False)
    assert study.named(EASY) == (True, False)


def test_signals_are_compared_seed_by_seed(study: ModuleType) -> None:
    rows = {row["signal"]: row for row in study.signals([FOUND, SWAPPED])}
    left = rows["entropy_left"]
    assert (left["easy"], left["noisy"], left["hard"]) == pytest.approx((0.4, 0.7, 0.85))
    assert left["hard - noisy"] == pytest.approx((0.4 - 0.1) / 2)
    assert left["hard - noisy_half"] == pytest.approx(12.706 * 0.25, rel=1e-3)  # t with one degree of freedom
    assert (left["hard > noisy"], left["noisy > easy"]) == (1, 2)
    assert rows["aleatoric_best"]["hard"] == pytest.approx((0.8 + 0.5) / 2)


def test_means_are_over_the_seeds_in_which_a_number_is_defined(study: ModuleType) -> None:
    rows = study.means([FOUND, run(*[dict.fromkeys(DOMAINS, 1.0)] * 2, (3.0, None))], "quality", ["nll"])
    assert [(row["epoch"], row["nll"]) for row in rows] == [(0, 2.0), (1, 2.0)]
    assert rows[1]["nll_half"] is None
    ends = study.with_ends(rows[0], ["nll"])
    assert ends["nll_high"] - ends["nll_low"] == pytest.approx(2 * rows[0]["nll_half"])


def test_seeds_count_whose_intervals_leave_out_zero(study: ModuleType) -> None:
    ends = [(0.1, 0.3), (-0.1, 0.2), (-0.4, -0.1), (0.0, 0.0)]
    found = [
        {
            "tables": {
                "detection": [
                    {"dataset": "ood", "epoch": 5, "epistemic_difference_low": low, "epistemic_difference_high": high}
                ]
            }
        }
        for low, high in ends
    ]
    assert study.higher(found) == [{"dataset": "ood", "epoch": 5, "seeds": 4, "higher": 1, "lower": 1}]
