"""Cells of parameters: which factor of LoRA, at which depth. Subsets and groups of the weights are made of them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from bayeslora.errors import UsageError

SUBSETS = ("all", "A", "B", "early", "late", "last")
GROUPINGS = ("one", "factor", "depth", "cell")
_LAYER = re.compile(r"\.(?:layers?|h|blocks?)\.(\d+)\.")


def cells_of(names: Iterable[str]) -> dict[str, str]:
    """Parameter name to its cell ``depth.factor``.

    The depth is ``early`` for the first half of the layers, ``late`` for the others, and ``last`` for what has no layer
    (the head) or, where everything has one, for the last layer. The factor is ``A`` or ``B`` of LoRA, or ``other``.
    """
    names = list(names)
    layers = {name: int(found[1]) if (found := _LAYER.search(name)) else None for name in names}
    numbers = sorted({layer for layer in layers.values() if layer is not None})
    last = None if None in layers.values() else max(numbers, default=None)
    early = set(numbers[: len(numbers) // 2])
    depth = {n: "last" if layer == last else "early" if layer in early else "late" for n, layer in layers.items()}
    return {name: f"{depth[name]}.{_factor(name)}" for name in names}


def _factor(name: str) -> str:
    return "A" if ".lora_A." in name else "B" if ".lora_B." in name else "other"


def chosen(cells: Iterable[str], subset: str) -> list[str]:
    """The cells that a subset of the weights is made of.

    Args:
        cells: What there is.
        subset: ``all``, a factor (``A``, ``B``), ``early``, ``late`` (with the last), or ``last``.

    Raises:
        UsageError: an unknown choice, or one that leaves nothing.
    """
    if subset not in SUBSETS:
        raise UsageError(f"Laplace's subset_of_weights is {subset!r}; allowed: {', '.join(SUBSETS)}")
    found = [cell for cell in dict.fromkeys(cells) if subset == "all" or subset in _tags(cell)]
    if not found:
        here = ", ".join(dict.fromkeys(cells))
        raise UsageError(f"Laplace's subset_of_weights {subset!r} leaves no parameter; here are {here}")
    return found


def _tags(cell: str) -> set[str]:
    depth, factor = cell.split(".")
    return {depth, factor} | ({"late"} if depth == "last" else set())


def group_cells(cells: Sequence[str], grouping: str) -> dict[str, list[str]]:
    """Cells that share a precision, by the name of their group.

    Args:
        cells: The cells in use.
        grouping: ``one`` group of all, one for each ``factor``, ``depth`` or ``cell``.

    Raises:
        UsageError: an unknown grouping.
    """
    if grouping not in GROUPINGS:
        raise UsageError(f"Laplace's groups are {grouping!r}; allowed: {', '.join(GROUPINGS)}")
    groups: dict[str, list[str]] = {}
    for cell in cells:
        depth, factor = cell.split(".")
        name = {"one": "all", "factor": factor, "depth": depth, "cell": cell}[grouping]
        groups.setdefault(name, []).append(cell)
    return groups


def names_of(cell_of: Mapping[str, str]) -> dict[str, list[str]]:
    """Cell to the names of its parameters."""
    names: dict[str, list[str]] = {}
    for name, cell in cell_of.items():
        names.setdefault(cell, []).append(name)
    return names
