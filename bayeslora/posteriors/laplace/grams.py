"""Inner products of the rows of Jacobians, by cell of parameters: all that a choice of the prior needs of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from bayeslora.errors import RunError
from bayeslora.posteriors.laplace.shards import Shards, pieces
from bayeslora.posteriors.state import parameters_of, state_of

ROWS = "rows"  # the name of the rows in a shard


@dataclass(frozen=True)
class Grams:
    """Inner products of the contrasts' rows of training and validation questions, by cell of parameters; float64.

    Attributes:
        cells: Name of each cell.
        present: Which contrasts every training question has ``[N', D']``, m in all; none of a question left out.
        train: ``[cells, m, m]``.
        cross: Validation with training rows ``[cells, N, D, m]``, D the largest number of contrasts.
        own: Each validation question's with itself ``[cells, N, D, D]``.
        offsets: Name of a centre of the prior to the training rows' products with what the weights are away from it
            ``[cells, m]``.
        cross_offsets: The same of the validation rows ``[cells, N, D]``.
    """

    cells: list[str]
    present: Tensor
    train: Tensor
    cross: Tensor
    own: Tensor
    offsets: Mapping[str, Tensor]
    cross_offsets: Mapping[str, Tensor]

    def sums(self, groups: Sequence[Sequence[str]]) -> Grams:
        """The sums over the cells of each group, in place of cells."""
        index = [[self.cells.index(cell) for cell in cells] for cells in groups]

        def added(values: Tensor) -> Tensor:
            """The sums over the first dimension's cells, group by group."""
            return torch.stack([values[cells].sum(0) for cells in index])

        return Grams(
            ["+".join(cells) for cells in groups],
            self.present,
            added(self.train),
            added(self.cross),
            added(self.own),
            {name: added(values) for name, values in self.offsets.items()},
            {name: added(values) for name, values in self.cross_offsets.items()},
        )


def gram_matrices(
    train: Shards,
    validation: Shards | None,
    sizes: Mapping[str, int],
    cell_of: Mapping[str, str],
    centres: Mapping[str, Mapping[str, Tensor]],
    device: torch.device | str = "cpu",
    share: tuple[int, int] = (0, 1),
) -> Grams:
    """Every cell's inner products, from one reading of the shards.

    Sums are float64; on a GPU, products over up to 16384 columns are taken in float32 first.

    Args:
        train: Rows of the training questions.
        validation: Rows of the validation questions, every question with all of its contrasts.
        sizes: Parameter name to number of entries, in the order of the rows' columns.
        cell_of: Parameter name to its cell.
        centres: Name of a centre of the prior to the weights less that centre, parameter name to value.
        device: Where the products are taken.
        share: Number of this process and how many there are: what each gives is one of that many summands.

    Raises:
        RunError: a number that is not finite, naming the parameter.
    """
    cells, columns = list(dict.fromkeys(cell_of[name] for name in sizes)), columns_of(sizes)
    with train.reading(), nullcontext() if validation is None else validation.reading():
        present = contrasts_of(validation)
        grams = _zeros(cells, contrasts_of(train, kept=True), present, list(centres), device)
        number = -1
        for name in sizes:
            cell = cells.index(cell_of[name])
            away = {kind: values[name].flatten().double().to(device) for kind, values in centres.items()}
            for piece in pieces(columns[name].start, columns[name].stop):
                number += 1
                if number % share[1] != share[0]:
                    continue
                part = slice(piece.start - columns[name].start, piece.stop - columns[name].start)
                rows = wide(train.columns(ROWS, piece).to(device))
                grams.train[cell] += (rows @ rows.T).double()
                for kind, vector in away.items():
                    grams.offsets[kind][cell] += (rows @ vector[part].to(rows.dtype)).double()
                if validation is not None:
                    other = wide(pad_rows(validation.columns(ROWS, piece), present).to(device))
                    grams.cross[cell] += (other @ rows.T).double()
                    grams.own[cell] += (other @ other.mT).double()
                    for kind, vector in away.items():
                        grams.cross_offsets[kind][cell] += (other @ vector[part].to(rows.dtype)).double()
            if not (grams.train[cell].isfinite().all() and grams.own[cell].isfinite().all()):
                raise RunError(f"the Gram matrix of {name} is not finite; look for an overflow in the model's dtype")
    return grams


def _zeros(
    cells: list[str], train: Tensor, validation: Tensor, centres: list[str], device: torch.device | str
) -> Grams:
    count, m = len(cells), int(train.sum())

    def zeros(*shape: int) -> Tensor:
        """A zero array for every cell."""
        return torch.zeros(count, *shape, dtype=torch.float64, device=device)

    return Grams(
        cells,
        train.to(device),
        zeros(m, m),
        zeros(*validation.shape, m),
        zeros(*validation.shape, validation.shape[-1]),
        {centre: zeros(m) for centre in centres},
        {centre: zeros(*validation.shape) for centre in centres},
    )


def columns_of(sizes: Mapping[str, int]) -> dict[str, slice]:
    """Where every parameter stands among the columns of the rows."""
    columns, start = {}, 0
    for name, size in sizes.items():
        columns[name] = slice(start, start + size)
        start += size
    return columns


def contrasts_of(shards: Shards | None, kept: bool = False) -> Tensor:
    """Which contrasts every question has ``[N, D]``; with ``kept``, none of a question that was left out.

    Args:
        shards: The rows by batch; None where there are none.
        kept: Whether questions that were left out count as having no contrasts.
    """
    logits = [] if shards is None else shards.stacked("logits")
    width = max((one.shape[1] - 1 for one in logits), default=0)
    masks = [torch.nn.functional.pad(one[:, 1:].isfinite(), (0, width - one.shape[1] + 1)) for one in logits]
    present = torch.cat(masks) if masks else torch.zeros(0, 0, dtype=torch.bool, device="cpu")
    if kept and shards is not None and masks:
        present = present & torch.cat(shards.stacked("kept"))[:, None]
    return present


def pad_rows(rows: Tensor, present: Tensor) -> Tensor:
    """Rows ``[m, columns]`` as ``[N, D, columns]``, with zeros where a question has fewer contrasts.

    Args:
        rows: A row for each contrast that is there ``[m, columns]``.
        present: Which contrasts each question has, bool ``[N, D]``.
    """
    spread = rows.new_zeros(*present.shape, rows.shape[-1])
    spread[present] = rows
    return spread


def wide(tensor: Tensor) -> Tensor:
    """In float64 where that is cheap, else at least in float32."""
    dtype = torch.float32 if tensor.is_cuda else torch.float64
    return tensor.to(torch.promote_types(tensor.dtype, dtype))


def to_tensors(grams: Grams) -> dict[str, Tensor]:
    """The tensors of Gram matrices by name, for a file."""
    plain = {name: getattr(grams, name) for name in ("present", "train", "cross", "own")}
    for kind in ("offsets", "cross_offsets"):
        plain |= state_of(kind, getattr(grams, kind))
    return plain


def from_tensors(cells: list[str], state: Mapping[str, Tensor]) -> Grams:
    """The inverse of :func:`to_tensors`.

    Args:
        cells: Names of the cells of parameters.
        state: The tensors by name.
    """
    offsets, cross_offsets = (parameters_of(kind, state) for kind in ("offsets", "cross_offsets"))
    return Grams(cells, state["present"], state["train"], state["cross"], state["own"], offsets, cross_offsets)
