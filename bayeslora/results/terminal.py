"""Wide tables on narrow terminals."""

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

Item = TypeVar("Item")


def column_groups(columns: Sequence[Item], width: Callable[[Item], int], room: int) -> Iterator[list[Item]]:
    """The columns in their order, in groups as large as fit side by side.

    Args:
        columns: What to divide.
        width: Characters a column takes, with its rule.
        room: Characters a group may take; a column wider than that is a group of its own.
    """
    group: list[Item] = []
    left = room
    for column in columns:
        if group and width(column) > left:
            yield group
            group, left = [], room
        group.append(column)
        left -= width(column)
    if group:
        yield group
