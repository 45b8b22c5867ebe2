"""Plots show the numbers of the metrics, for every kind of prediction and for very few questions."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from matplotlib.figure import Figure

from bayeslora.metrics import ECE, Answers, ece_floor
from bayeslora.metrics.selective import risk_curve
from bayeslora.results import plots
from bayeslora.types import Predictive


def answers(n: int, members: int = 3, seed: int = 0) -> Answers:
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(members, n, 4, generator=generator)
    made = Answers.from_predictive(Predictive.from_logits(logits), torch.randint(4, (n,), generator=generator))
    return replace(made, example_id=[f"q{i}" for i in range(n)])


def texts(figure: Figure) -> str:
    figure.canvas.draw()
    parts = [axes.get_title() for axes in figure.axes]
    parts += [text.get_text() for axes in figure.axes for text in axes.texts]
    legends = [*figure.legends, *(axes.get_legend() for axes in figure.axes if axes.get_legend())]
    return "\n".join([*parts, *(text.get_text() for legend in legends for text in legend.get_texts())])


def test_reliability_names_the_error_and_its_floor() -> None:
    made = answers(300)
    text = texts(plots.reliability({"arc": made, "law": answers(50, seed=1)}))
    floor = ece_floor(made.probs.amax(-1), 15)
    assert f"arc\nECE {ECE(15)(made.probs, made.label):.3f} (floor {floor:.3f})" in text
    assert "law" in text


def test_reliability_points_are_the_bins() -> None:
    made = answers(300)
    figure = plots.reliability({"arc": made}, n_bins=10)
    full, hollow = figure.axes[0].collections[-2:]
    inside = {(0.5 < c <= 0.6): None for c in made.probs.amax(-1).tolist()}
    chosen = (made.probs.amax(-1) > 0.5) & (made.probs.amax(-1) <= 0.6)
    right = (made.probs.argmax(-1) == made.label)[chosen].double().mean().item()
    points = [tuple(point) for point in full.get_offsets().tolist()]
    assert pytest.approx((made.probs.amax(-1)[chosen].mean().item(), right)) in points
    assert len(points) + len(hollow.get_offsets()) == 10 - 2  # four options: no confidence below 1/4
    assert len(inside) == 2
    bars = figure.axes[1].patches
    assert sum(bar.get_height() for bar in bars) == 300


def test_risk_coverage_ends_at_the_error_rate() -> None:
    made = answers(300)
    figure = plots.risk_coverage({"arc": made})
    risk = risk_curve(made.probs.amax(-1), made.probs.argmax(-1) == made.label)
    assert figure.axes[0].lines[0].get_ydata()[-1] == risk[-1]
    assert f"arc\n(area {risk.mean():.3f})" in texts(figure)


def test_lines_differ_in_colour_and_style() -> None:
    styles = plots.line_styles()
    first = [next(styles) for _ in range(14)]
    assert len({(line["color"], str(line["linestyle"])) for line in first}) == 14
    assert len({line["color"] for line in first[:12]}) == 12
    assert len({str(line["linestyle"]) for line in first[:7]}) == 7


@pytest.mark.parametrize("members", [1, 3])
@pytest.mark.parametrize("n", [1, 2, 100])
@pytest.mark.filterwarnings("error")
def test_all_are_saved_for_few_questions_and_one_member(tmp_path: Path, n: int, members: int) -> None:
    saved = plots.save_plots({"arc": answers(n, members), "law": answers(n, members, 1)}, tmp_path)
    assert sorted(path.name for path in saved) == sorted(path.name for path in tmp_path.iterdir())
    assert len(saved) == 4
    text = texts(plots.uncertainty_right_wrong(answers(n, members), "arc"))
    assert ("one network" in text) == (members == 1)
