"""Every picture is drawn, and nothing in it is cut off: no text outside the figure, no mark outside its axes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection, PathCollection
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.transforms import Bbox

from bayeslora.commands.dynamics import analyse
from bayeslora.metrics import Answers
from bayeslora.results import plots
from bayeslora.results.comparison import plots as comparison_plots
from bayeslora.results.comparison.comparison import Comparison, Run
from bayeslora.results.dynamics import plots as dynamics_plots
from bayeslora.results.dynamics.course import Course, Epoch
from bayeslora.types import Predictive

METHODS = ["mle", "swag", "mle+temperature", "ensemble", "laplace", "c_lora", "blob_mean+tfb", "tfb"]
SETS = {"synthetic": 200, "synthetic:shifted": 120, "synthetic:ood": 120}


def clipped(figure: Figure) -> list[str]:
    """What is cut off: axes with their texts, legends and titles that leave the figure, marks that leave their axes."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    renderer, found = canvas.get_renderer(), []
    extents = {f"axes {axes.get_title()!r}": axes.get_tightbbox(renderer) for axes in figure.axes}
    others = [*figure.legends, *figure.texts]
    extents |= {f"{type(other).__name__} {i}": other.get_window_extent(renderer) for i, other in enumerate(others)}
    found += [name for name, box in extents.items() if not _inside(box, figure.bbox, 1)]
    for axes in figure.axes:
        for artist, points, size in _marks(axes):
            pixels = axes.transData.transform(points[np.isfinite(points).all(-1)])
            reach = size / 2 * figure.dpi / 72 if artist.get_clip_on() else 0
            if len(pixels):
                box = Bbox([pixels.min(0) - reach, pixels.max(0) + reach])
                found += [] if _inside(box, axes.bbox, 1.5) else [f"a mark of {artist.get_label()}"]
    return found


def _inside(box: Bbox, whole: Bbox, slack: float) -> bool:
    return bool((box.min >= whole.min - slack).all() and (box.max <= whole.max + slack).all())


def _marks(axes: Axes) -> Iterator[tuple[Any, np.ndarray, float]]:
    for line in axes.lines:
        if line.get_marker() != "None":
            yield line, np.asarray(line.get_xydata(), dtype=float), line.get_markersize()
    for dots in axes.collections:
        if isinstance(dots, PathCollection) and len(dots.get_offsets()):
            yield dots, np.ma.filled(dots.get_offsets(), np.nan), float(np.sqrt(dots.get_sizes()).max())


def answers(n: int, noise: float, seed: int, members: int = 2) -> Answers:
    fixed, own = torch.Generator().manual_seed(n), torch.Generator().manual_seed(seed)
    truth = 2 * torch.randn(n, 4, generator=fixed, dtype=torch.float64)
    label = torch.multinomial(truth.softmax(-1), 1, generator=fixed).squeeze(1)
    logits = truth + noise * torch.randn(members, n, 4, generator=own, dtype=torch.float64)
    made = Answers.from_predictive(Predictive.from_logits(logits), label)
    return replace(made, example_id=[f"q{i}" for i in range(n)])


def comparison(methods: int, seeds: int) -> Comparison:
    return Comparison(
        [
            Run(Path("x"), name, seed, {"synthetic": answers(200, 0.5 + 0.4 * place, seed)}, {})
            for place, name in enumerate(METHODS[:methods])
            for seed in range(seeds)
        ],
        "mle",
    )


@pytest.mark.parametrize(("methods", "seeds"), [(1, 1), (3, 3), (8, 2)])
@pytest.mark.parametrize("name", ["reliability", "risk_coverage", "accuracy_ece"])
def test_pictures_of_a_comparison(name: str, methods: int, seeds: int) -> None:
    assert clipped(getattr(comparison_plots, name)(comparison(methods, seeds))) == []


def test_many_methods_have_a_panel_each_and_few_are_named_at_their_lines() -> None:
    many = comparison_plots.risk_coverage(comparison(8, 2))
    assert [axes.get_title().split("\n")[0] for axes in many.axes] == METHODS
    assert all(len(axes.collections) == 1 for axes in many.axes)  # one band a panel
    assert "dashed: mle" in many.get_supxlabel()
    few = comparison_plots.risk_coverage(comparison(3, 2))
    assert [text.get_text().split("\n")[0] for text in few.axes[0].texts] == METHODS[:3]
    assert few.axes[0].get_legend() is None


def test_noise_is_not_made_large() -> None:
    runs = [Run(Path("x"), name, 0, {"synthetic": answers(200, 0.5, 0)}, {}) for name in METHODS[:2]]
    axes = comparison_plots.accuracy_ece(Comparison(runs, "mle")).axes[0]
    assert np.diff(axes.get_xlim()) >= 0.1 - 1e-9
    assert axes.get_ylim()[0] == 0
    assert axes.get_ylim()[1] >= 0.1


def test_intervals_stay_where_accuracies_are() -> None:
    runs = [
        Run(Path("x"), "mle", seed, {"synthetic": answers(200, noise, seed)}, {}) for seed, noise in ((0, 0.1), (1, 9))
    ]
    axes = comparison_plots.accuracy_ece(Comparison(runs, "mle")).axes[0]
    bars = [line for line in axes.collections if isinstance(line, LineCollection)]
    reaches = np.concatenate([np.concatenate(line.get_segments()) for line in bars])
    assert reaches.min() >= 0
    assert reaches.max() <= 1


def test_reliability_of_a_comparison_has_band_and_counts() -> None:
    figure = comparison_plots.reliability(comparison(2, 2))
    upper, lower = figure.axes[:2]
    assert upper.patches
    assert sum(bar.get_height() for bar in lower.patches) == 200
    assert "95 % if calibrated" in [text.get_text() for text in figure.legends[0].get_texts()]


def test_the_strong_line_of_several_runs_is_of_the_answers_of_all_of_them() -> None:
    made = comparison(1, 2)
    panel = comparison_plots.reliability(made).axes[0]
    faint = [line for line in panel.lines if line.get_alpha() == 0.25]
    (strong,) = (line for line in panel.lines if line.get_marker() == "o")
    assert len(faint) == 2
    answers = [run.datasets["synthetic"] for run in made.runs]
    confidence, correct = (
        torch.cat([score(a) for a in answers])
        for score in (lambda a: a.probs.max(-1).values, lambda a: a.probs.argmax(-1) == a.label)
    )
    inside = [(confidence > k / 15) & (confidence <= (k + 1) / 15) for k in range(15)]
    expected = [float(correct[i].double().mean()) for i in inside if i.sum() >= 10]
    assert strong.get_ydata() == pytest.approx(expected)


PICTURES: dict[str, Callable[[dict[str, Answers]], Figure]] = {
    "reliability": plots.reliability,
    "risk_coverage": plots.risk_coverage,
    "right_wrong": lambda sets: plots.uncertainty_right_wrong(sets["synthetic"], "synthetic"),
    "datasets": plots.uncertainty_datasets,
}


@pytest.mark.parametrize("members", [1, 3])
@pytest.mark.parametrize("name", PICTURES)
def test_pictures_of_a_run(name: str, members: int) -> None:
    sets = {each: answers(n, 1.0, 0, members) for each, n in SETS.items()}
    figure = PICTURES[name](sets)
    assert clipped(figure) == []
    texts = " ".join(text.get_text() for text in figure.findobj(Text)).replace("\n", " ")
    assert ("one network" in texts) == (members == 1 and name in ("right_wrong", "datasets"))
    assert "members agree" not in texts


@pytest.fixture(scope="module")
def course() -> Course:
    cosine = torch.tensor([[1.0, 0.2], [0.2, 1.0]])
    epochs = [
        Epoch(
            e, {name: answers(n // 2, abs(2 - e) + 0.5, 1) for name, n in (SETS | {"validation": 80}).items()}, cosine
        )
        for e in range(4)
    ]
    return Course(epochs, "ensemble", 3)


@pytest.mark.parametrize("sets", [2, 4])
def test_pictures_of_a_training(course: Course, sets: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [*list(SETS)[: sets - 1], "validation"]
    fewer = replace(course, epochs=[replace(e, datasets={n: e.datasets[n] for n in names}) for e in course.epochs])
    drawn: dict[str, Figure] = {}
    monkeypatch.setattr(dynamics_plots, "save", lambda figure, path: drawn.setdefault(path.stem, figure))
    dynamics_plots.save_plots(fewer, analyse(fewer, resamples=10), tmp_path)
    assert {name: cut for name, figure in drawn.items() if (cut := clipped(figure))} == {}
    for name in ("quality", "uncertainty", "retention", "diversity"):
        legend = [text.get_text() for text in drawn[name].legends[0].get_texts()]
        assert "best epoch (lowest NLL)" in legend
    marked = [line for line in drawn["quality"].axes[0].lines if line.get_marker() == "."]
    assert [len(line.get_xdata()) for line in marked] == [4, 4]


def test_the_check_sees_what_is_cut_off() -> None:
    figure = Figure(figsize=(3, 2))
    axes = figure.add_subplot()
    axes.plot([0, 1], [0, 1], marker="o", label="line")
    axes.set(xlim=(0, 1), ylim=(0, 1.2))
    axes.text(1.5, 0.5, "far away")
    assert clipped(figure) == ["axes ''", "a mark of line"]
