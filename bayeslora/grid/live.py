"""A grid on the terminal: how many cells of each row are done, run, wait or have failed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.live import Live
from rich.table import Table

from bayeslora.grid.cells import Cell
from bayeslora.grid.specification import Grid

_STYLES = {"done": "green", "running": "cyan", "failed": "red", "not run": "red", "begun": "yellow"}


class Progress:
    """The state of a grid's cells.

    Args:
        grid: The grid.
        states: Status of each cell.
        console: Where it is shown.
    """

    def __init__(self, grid: Grid, states: Iterable[tuple[Cell, str]], console: Console) -> None:
        self.grid, self.states, self.console = grid, dict(states), console
        self._live: Live | None = None

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Within the block the table follows the cells on a terminal; elsewhere each change is a line."""
        if not self.console.is_terminal:
            yield
            return
        with Live(self.table(), console=self.console, auto_refresh=False) as self._live:
            yield
        self._live = None

    def changed(self, cell: Cell, status: str) -> None:
        """Take up a cell's new status.

        Args:
            cell: The cell.
            status: Its new status, in one word.
        """
        self.states[cell] = status
        if self._live is not None:
            self._live.update(self.table(), refresh=True)
        else:
            done = sum(state == "done" for state in self.states.values())
            self.console.print(f"[{done}/{len(self.states)} done] {cell.key}: {status}", markup=False, highlight=False)

    def table(self) -> Table:
        """A row a method, a column a dataset: how many cells have which status."""
        table = Table(title=self.grid.title, title_justify="left")
        table.add_column("")
        for dataset in self.grid.datasets:
            table.add_column(dataset)
        for method in self.grid.methods:
            table.add_row(method, *(self._counts(method, dataset) for dataset in self.grid.datasets))
        return table

    def _counts(self, method: str, dataset: str) -> str:
        states = Counter(s for cell, s in self.states.items() if (cell.method, cell.dataset) == (method, dataset))
        parts = (f"{count} {state}" for state, count in states.items())
        styles = (_STYLES.get(state, "default") for state in states)
        return ", ".join(f"[{style}]{part}[/]" for style, part in zip(styles, parts, strict=True))
