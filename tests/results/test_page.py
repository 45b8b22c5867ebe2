"""The page of a comparison and its LaTeX: complete, escaped, and in need of nothing beside itself."""

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch

from bayeslora.results.comparison.comparison import Comparison, Run
from bayeslora.results.comparison.latex import escaped, latex_text
from bayeslora.results.comparison.page import Section, page
from bayeslora.results.comparison.plots import save_plots
from bayeslora.results.comparison.tables import difference_text, grids
from tests.helpers.equal_rows import equal_rows

STRANGE = "a_b <script>alert(1)</script> & 50 % | ~"


@pytest.fixture(scope="module")
def comparison() -> Comparison:
    rows = equal_rows(2, torch.Generator().manual_seed(0))
    named = dict(zip(("mle", STRANGE), rows.values(), strict=True))
    runs = [
        Run(Path(f"{place}/{seed}"), method, seed, {"test": answers}, {"train_seconds": 3.0})
        for place, (method, seeds) in enumerate(named.items())
        for seed, answers in enumerate(seeds)
    ]
    return Comparison(runs, "mle")


class _Reader(HTMLParser):
    """Collects tags with their attributes, and checks that they nest."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_holds_every_table_and_asks_for_nothing(comparison: Comparison, tmp_path: Path) -> None:
    text = page("A <title>", [Section("test", comparison, save_plots(comparison, tmp_path))], ["seeds & such"])
    reader = _Reader()
    reader.feed(text)
    assert not reader.open
    assert sum(tag == "script" for tag, _ in reader.tags) == 1
    assert "A &lt;title&gt;" in text
    assert "seeds &amp; such" in text
    pictures = [attributes for tag, attributes in reader.tags if tag == "img"]
    assert len(pictures) == 3
    assert all(picture["alt"] and picture["src"].startswith("data:image/png;base64,") for picture in pictures)
    assert not [a for _, attributes in reader.tags for a in attributes if a in ("href", "srcset", "onclick")]
    assert "default-src 'none'" in text
    found = comparison.summary(STRANGE, "test", "expected_nll")
    assert found is not None
    assert f'data-value="{found.mean!r}"' in text
    assert "3.0 s" in text
    assert "3.0 s" not in page("", [Section("test", comparison, costs=False)])


def test_the_best_are_marked_everywhere(comparison: Comparison) -> None:
    best = comparison.best("test", "nll")
    assert best == {"mle", STRANGE}
    assert page("", [Section("test", comparison)]).count('class="best"') >= 2
    assert latex_text(comparison).count(r"\best{") > 2


def test_a_difference_is_bold_where_its_interval_leaves_out_zero(comparison: Comparison) -> None:
    found = [
        column.cells[1]
        for grid in grids(comparison)
        for column in grid.columns
        if column.cells[1] is not None and difference_text(column, column.cells[1])
    ]
    text = page("", [Section("test", comparison)])
    assert text.count("<small") == len(found)
    assert text.count('<small class="clear">') == sum(cell.clear for cell in found) < len(found)


def test_latex_is_escaped_and_whole(comparison: Comparison) -> None:
    text = latex_text(comparison, costs=False)
    assert escaped(STRANGE).startswith(r"a\_b \textless{}script\textgreater{}")
    assert escaped(STRANGE) in text
    assert text.count(r"\begin{table}") == text.count(r"\end{table}") == text.count(r"\toprule")
    for table in text.split(r"\midrule")[1:]:
        rows = [line for line in table.split(r"\bottomrule")[0].splitlines() if line]
        assert len({len(re.findall(r"(?<!\\)&", row)) for row in rows}) == 1
        assert all(row.endswith(r"\\") for row in rows)
