"""Padded arrays as nested lists of Arrow and back, without a loop over rows."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa

Array = npt.NDArray[np.generic]
Lengths = npt.NDArray[np.int64]


def to_lists(values: Array, lengths: Sequence[Lengths]) -> pa.ListArray:
    """Nested lists from a padded array.

    Args:
        values: ``[N, L1]`` or ``[N, L1, L2]``.
        lengths: For each axis after the first how much of it each row uses, ``[N]`` each.
    """
    flat = pa.array(values[_used(values.shape[1:], lengths)])
    if len(lengths) == 2:
        flat = pa.ListArray.from_arrays(_offsets(np.repeat(lengths[1], lengths[0])), flat)
    return pa.ListArray.from_arrays(_offsets(lengths[0]), flat)


def from_lists(lists: pa.ListArray, fill: float) -> tuple[Array, tuple[Lengths, ...]]:
    """A padded array from nested lists, and how much of each axis each row uses.

    Args:
        lists: N lists of numbers, or N lists of lists of numbers that are equally long within a row.
        fill: What absent entries are.

    Returns:
        Values ``[N, L1]`` or ``[N, L1, L2]`` and the lengths as in :func:`to_lists`.

    Raises:
        ValueError: If the inner lists of a row differ in length, or a list is null or empty.
    """
    outer = _lengths(lists)
    flat = lists.flatten()
    lengths: tuple[Lengths, ...] = (outer,)
    if pa.types.is_list(flat.type):
        inner = _lengths(flat)
        first = inner[np.cumsum(outer) - outer]
        if not np.array_equal(inner, np.repeat(first, outer)):
            raise ValueError("lists within a row differ in length")
        flat, lengths = flat.flatten(), (outer, first)
    if flat.null_count:
        raise ValueError(f"{flat.null_count} numbers are null")
    shape = tuple(int(length.max()) for length in lengths)
    values = np.full((len(lists), *shape), fill, dtype=flat.type.to_pandas_dtype())
    values[_used(shape, lengths)] = flat.to_numpy()
    return values, lengths


def _used(shape: tuple[int, ...], lengths: Sequence[Lengths]) -> npt.NDArray[np.bool_]:
    used = np.arange(shape[0]) < lengths[0][:, None]
    if len(lengths) == 1:
        return used
    return used[:, :, None] & (np.arange(shape[1]) < lengths[1][:, None])[:, None, :]


def _offsets(lengths: Lengths) -> npt.NDArray[np.int32]:
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)


def _lengths(lists: pa.ListArray) -> Lengths:
    lengths = lists.value_lengths().fill_null(0).to_numpy().astype(np.int64)
    if not lengths.all():
        raise ValueError(f"{(lengths == 0).sum()} lists are null or empty")
    return lengths
