"""A comparison as LaTeX: one table a dataset, with booktabs."""

from __future__ import annotations

from bayeslora.results.comparison.comparison import Comparison, Summary
from bayeslora.results.comparison.tables import Column, Grid, grids, legend

_ESCAPES = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "|": r"\textbar{}"}
_ESCAPES |= {char: f"\\{char}" for char in "_&%#${}"} | {"<": r"\textless{}", ">": r"\textgreater{}"}
_ESCAPES |= {"↑": r"$\uparrow$", "↓": r"$\downarrow$", "±": r"$\pm$"}
HEAD = r"""% \usepackage{booktabs}
\providecommand{\best}[1]{\textbf{#1}}  % the best of a column, and what is not to be told from it
"""


def latex_text(comparison: Comparison, costs: bool = True) -> str:
    r"""The tables in LaTeX; ``\best`` marks what is bold, and the legend stands as comments.

    Args:
        comparison: The runs to compare.
        costs: Whether what they cost is a table too.
    """
    tables = "\n".join(_table(grid) for grid in grids(comparison, costs) if grid.columns)
    return HEAD + "".join(f"% {line}\n" for line in legend(comparison)) + "\n" + tables


def escaped(text: str) -> str:
    """Text as LaTeX shows it.

    Args:
        text: Any.
    """
    return "".join(_ESCAPES.get(char, char) for char in text)


def _table(grid: Grid) -> str:
    head = " & ".join(["", *(escaped(column.title) for column in grid.columns)])
    rows = []
    for row, method in enumerate(grid.methods):
        cells = (_cell(column, column.cells[row], method) for column in grid.columns)
        rows.append(" & ".join([escaped(method), *cells]) + r" \\")
    return "\n".join(
        [
            r"\begin{table}",
            rf"\caption{{{escaped(grid.title)}}}",
            rf"\begin{{tabular}}{{l{'r' * len(grid.columns)}}}",
            r"\toprule",
            head + r" \\",
            r"\midrule",
            *rows,
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
            "",
        ]
    )


def _cell(column: Column, found: Summary | None, method: str) -> str:
    if found is None:
        return "--"
    text = escaped(column.show(found))
    return rf"\best{{{text}}}" if method in column.best else text
