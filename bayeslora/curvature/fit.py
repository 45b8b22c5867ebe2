"""From batches to a fitted curvature: one function for each structure, entered by name in ``STRUCTURES``."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from math import prod
from pathlib import Path
from resource import RUSAGE_SELF, getrusage
from time import monotonic
from typing import Any

import torch
from torch import Tensor

from bayeslora.curvature.ranks import Ranks
from bayeslora.curvature.rows import Network, collect
from bayeslora.curvature.stages import accumulate
from bayeslora.curvature.structures import BLOCK_STRUCTURES, accumulators, gaussian
from bayeslora.errors import UsageError, require_choice
from bayeslora.files import read_record, write_record
from bayeslora.posteriors.laplace.cells import cells_of, names_of
from bayeslora.posteriors.laplace.curvature import BlockCurvature, Curvature, Groups
from bayeslora.posteriors.laplace.fit import CENTRES, Fit, distances
from bayeslora.posteriors.laplace.function_space import Directions, FunctionSpace
from bayeslora.posteriors.laplace.grams import (
    ROWS,
    Grams,
    columns_of,
    contrasts_of,
    from_tensors,
    gram_matrices,
    pad_rows,
    to_tensors,
)
from bayeslora.posteriors.laplace.refitted import RefittedSpace
from bayeslora.posteriors.laplace.selection import Validation
from bayeslora.posteriors.laplace.shards import (
    DiskShards,
    MemoryShards,
    Shards,
    check_disk,
    load_checked,
    save_checked,
)
from bayeslora.posteriors.laplace.softmax import softmax_root
from bayeslora.posteriors.state import parameters_of, state_of

_WEIGHTS, _RECORD, _GRAMS = "weights.safetensors", "fit.json", "grams.safetensors"
_SMALL, _SMALL_ON_GPU = 512, 4096  # rows of a decomposition that is timed
_LONG = 10.0  # seconds from which on an estimate is printed
FORMAT = 2  # of the stages in a fit's folder
Watch = Callable[[Iterable[Any], str], Iterable[Any]]


@dataclass(kw_only=True)
class Task:
    """What a structure is fitted to.

    Attributes:
        network: The module.
        train: The training batches, each question once, always in the same order.
        validation: The validation batches; None where there are none.
        folder: Where stages are kept; None keeps them in memory.
        key: Tells the weights, data and options from others.
        initial: The weights that training began with, where they are known.
        dtype: Of Jacobians.
        prune: See :func:`~bayeslora.curvature.rows.collect`.
        max_bytes: Most bytes that the directions of a full posterior may take.
        watch: Puts a progress bar around an iterable.
        stages: Seconds and peak bytes of each stage so far.
        ranks: The processes that fit together; their batches are those of all, in the order of one process.
    """

    network: Network
    train: Iterable[Any]
    validation: Iterable[Any] | None
    folder: Path | None
    key: str
    initial: Mapping[str, Tensor] | None = None
    dtype: torch.dtype = torch.bfloat16
    prune: float = 0.0
    max_bytes: float = 20e9
    watch: Watch = lambda iterable, _: iterable
    stages: dict[str, dict[str, float]] = field(default_factory=dict)
    ranks: Ranks = field(default_factory=Ranks)

    @property
    def device(self) -> torch.device:
        """Where the module is."""
        return next(iter(self.network.parameters.values())).device

    @property
    def mean(self) -> dict[str, Tensor]:
        """The weights, on the CPU."""
        return {name: value.detach().cpu().clone() for name, value in self.network.parameters.items()}

    def shards(self, split: str) -> Shards:
        """The shards of a split."""
        return MemoryShards() if self.folder is None else DiskShards(self.folder / split, self.key)

    def passed(self, number: int) -> Iterator[Any]:
        """The training batches on the module's device, for a pass over the data of this number."""
        return map(self.network.move, self.watch(self.train, f"pass {number + 1} for the curvature"))

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Note what the block takes."""
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        started = monotonic()
        yield
        on_gpu = self.device.type == "cuda"
        peak = torch.cuda.max_memory_allocated(self.device) if on_gpu else getrusage(RUSAGE_SELF).ru_maxrss * 1024
        self.stages[name] = {"seconds": round(monotonic() - started, 3), "peak_bytes": peak}


def fit_full(task: Task) -> Fit:
    """The full Gauss-Newton matrix by the rows of the training questions."""
    names = list(task.network.parameters)
    train, validation = task.shards("train"), None if task.validation is None else task.shards("validation")
    with task.stage("collect"):
        collect(
            task.network,
            task.watch(task.train, "Jacobians of the training questions"),
            names,
            train,
            task.dtype,
            task.prune,
            task.ranks,
        )
        collect_validation(task, validation)
    mean = task.mean
    with task.stage("gram"):
        grams = _grams(task, train, validation, cells_of(names))
    if task.ranks.rank == 0:
        _announce(grams.train)
    size = sum(value.numel() for value in mean.values())
    figures = {**_counts(train), "m": grams.train.shape[-1], "parameters": size}
    if task.folder is not None and task.ranks.rank == 0:
        initial = state_of("initial", task.initial or {})
        save_checked(task.folder / _WEIGHTS, {**state_of("mean", mean), **initial}, task.key)
        plain = {"format": FORMAT, "key": task.key, "names": names, "figures": figures, "max_bytes": task.max_bytes}
        write_record(task.folder / _RECORD, {**plain, "dtype": str(task.dtype)})
    return _full(mean, task.initial, grams, (train, validation), figures, task.max_bytes, task.dtype)


def _announce(gram: Tensor) -> None:
    """Say how long the decomposition will take where that is long: by the cube of a smaller one.

    The smaller one is large enough to keep the device busy, and is not the first that the device is asked for.
    """
    rows, small = len(gram[0]), _SMALL_ON_GPU if gram.is_cuda else _SMALL
    if rows <= small:
        return
    part = gram[0, :small, :small]
    torch.linalg.eigh(part[:64, :64])[0].sum().item()
    started = monotonic()
    torch.linalg.eigh(part)[0].sum().item()
    seconds = (monotonic() - started) * (rows / small) ** 3
    if seconds > _LONG:
        print(f"laplace: the eigendecomposition of {rows} rows will take about {seconds:.0f} s")


def _full(
    mean: Mapping[str, Tensor],
    initial: Mapping[str, Tensor] | None,
    grams: Grams,
    shards: tuple[Shards, Shards | None],
    figures: dict[str, Any],
    max_bytes: float,
    dtype: torch.dtype,
) -> Fit:
    train, cell_of = shards[0], cells_of(mean)
    directions = Directions(mean, names_of(cell_of), train, max_bytes, dtype)
    trained, label = _answered(train)

    def curvature(groups: Groups) -> Curvature:
        """The posterior in the space of the training rows, for groups of cells with a precision each."""
        root = softmax_root(trained).to(grams.train.device)
        return FunctionSpace(grams.sums(list(groups.values())), root, groups, directions)

    def refitted(groups: Groups, centre: str, distance: Mapping[str, Tensor]) -> RefittedSpace:
        """The same around the optimum that the linearised model has at each precision."""
        if figures["dropped"]:
            raise UsageError(
                f"mean='refit' needs the rows of all training questions, {figures['dropped']} were left out; fit again "
                "with mean='refit', or with prune=0"
            )
        return RefittedSpace(grams, trained, label, groups, directions, centre, distance)

    return Fit(mean, initial, cell_of, *_labelled(*shards), curvature, figures, refitted)


def load_full(folder: Path) -> Fit:
    """A full fit from its folder: for another choice of the prior, without the model.

    Args:
        folder: ``<run folder>/laplace/<key>``.

    Raises:
        UsageError: no fit there that is complete, or a damaged file.
    """
    if not (folder / _RECORD).exists():
        raise UsageError(f"{folder} holds no complete fit ({_RECORD} is missing); run bayeslora laplace first")
    record = read_record(folder / _RECORD, "remove it and run bayeslora laplace again")
    if record.get("format") != FORMAT:
        raise UsageError(f"{folder} was left by another version of bayeslora; run bayeslora laplace again")
    state = load_checked(folder / _WEIGHTS, record["key"])
    mean, initial = parameters_of("mean", state), parameters_of("initial", state)
    mean = {name: mean[name] for name in record["names"]}
    cells = list(dict.fromkeys(cells_of(mean).values()))
    grams = from_tensors(cells, load_checked(folder / _GRAMS, record["key"]))
    train, validation = (DiskShards(folder / split, record["key"]) for split in ("train", "validation"))
    dtype = getattr(torch, record["dtype"].removeprefix("torch."))
    return _full(mean, initial or None, grams, (train, validation), record["figures"], record["max_bytes"], dtype)


def collect_validation(task: Task, shards: Shards | None) -> None:
    """The contrasts' Jacobians of the validation questions, all of them.

    Args:
        task: What the curvature is fitted to.
        shards: Where the rows are kept; None where there are no validation questions.
    """
    if task.validation is not None and shards is not None:
        batches = task.watch(task.validation, "Jacobians of the validation questions")
        collect(task.network, batches, list(task.network.parameters), shards, task.dtype, ranks=task.ranks)


def _labelled(train: Shards, validation: Shards | None) -> tuple[float, Validation | None]:
    """The training labels' log-likelihood, and the validation questions."""
    logits, label = _answered(train)
    likelihood = logits.log_softmax(-1).gather(-1, label[:, None]).sum().item()
    if validation is None or not len(validation):
        return likelihood, None
    logits, label = _answered(validation)
    return likelihood, Validation(logits[:, 1:] - logits[:, :1], label)


def _answered(shards: Shards) -> tuple[Tensor, Tensor]:
    """Logits ``[N, C]`` of all questions, minus infinity at absent options, and their labels ``[N]``."""
    logits = shards.stacked("logits")
    width = max(one.shape[1] for one in logits)
    same = [torch.nn.functional.pad(one, (0, width - one.shape[1]), value=-torch.inf) for one in logits]
    return torch.cat(same), torch.cat(shards.stacked("label"))


def _counts(train: Shards) -> dict[str, Any]:
    """Questions used and left out, and an estimate of the norm of what was left out.

    The estimate is the sum of the traces left out times the largest squared norm of a question's Jacobian.
    """
    kept = torch.cat(train.stacked("kept"))
    lost, gain = torch.cat(train.stacked("lost")).sum().item(), max(train.stacked("gain")).item()
    return {"questions": int(kept.sum()), "dropped": int((~kept).sum()), "dropped_norm": lost * gain}


def _grams(task: Task, train: Shards, validation: Shards | None, cell_of: Mapping[str, str]) -> Grams:
    """The Gram matrices, from disk where they have been computed; each process computes its share of the columns."""
    sizes = {name: parameter.numel() for name, parameter in task.network.parameters.items()}
    file = None if task.folder is None else task.folder / _GRAMS
    cells = list(dict.fromkeys(cell_of[name] for name in sizes))
    if file is not None and task.ranks.gather(file.exists())[0]:
        return from_tensors(cells, load_checked(file, task.key))
    known = [centre for centre in CENTRES if centre != "initial" or task.initial is not None]
    centres = {centre: distances(task.mean, task.initial, centre) for centre in known}
    share = task.ranks.rank, task.ranks.world
    with task.ranks.together():
        found = to_tensors(gram_matrices(train, validation, sizes, cell_of, centres, task.device, share))
    present = found.pop("present")
    found = {"present": present, **task.ranks.add(found)}
    if file is not None and task.ranks.rank == 0:
        save_checked(file, found, task.key)
    return from_tensors(cells, found)


def fit_blocks(task: Task, structure: str) -> Fit:
    """Blocks that do not touch each other, in one of the structures of :mod:`bayeslora.curvature.structures`.

    Args:
        task: What the curvature is fitted to.
        structure: A name of ``BLOCK_STRUCTURES``.

    Raises:
        UsageError: a module that is not of this package.
    """
    check_structure_of(task.network, structure)
    model, names = task.network.model, list(task.network.parameters)
    assert model is not None
    train, validation = task.shards("train"), None if task.validation is None else task.shards("validation")
    shapes = {name: tuple(parameter.shape) for name, parameter in task.network.parameters.items()}
    with task.stage("collect"):
        collect(task.network, task.watch(task.train, "training questions"), [], train, task.dtype, ranks=task.ranks)
        passes = accumulators(
            structure,
            shapes,
            device=task.device,
            dtype=torch.promote_types(task.dtype, torch.float32),
            ranks=task.ranks,
        )
        accumulator = accumulate(passes, model, task.passed, task.folder, task.key, ranks=task.ranks)
        collect_validation(task, validation)
    cell_of, fitted = cells_of(names), gaussian(accumulator, task.mean)

    def curvature(groups: Groups) -> Curvature:
        """The fitted blocks, for groups of cells with a precision each."""
        cells = names_of(cell_of)
        named = {group: [name for cell in own for name in cells[cell]] for group, own in groups.items()}
        return BlockCurvature(fitted, named, lambda: _jacobians(validation, shapes))

    return Fit(task.mean, task.initial, cell_of, *_labelled(train, validation), curvature, _counts(train))


def _jacobians(shards: Shards | None, shapes: Mapping[str, tuple[int, ...]]) -> Iterator[dict[str, Tensor]]:
    """The validation questions' Jacobians, name to ``[B, C-1, *shape]``, batch by batch, all with as many contrasts."""
    if shards is None:
        return
    present, start = contrasts_of(shards), 0
    columns = columns_of({name: prod(shape) for name, shape in shapes.items()})
    with shards.reading():
        for index, logits in enumerate(shards.stacked("logits")):
            own = present[start : start + len(logits)]
            start += len(logits)
            rows = pad_rows(shards.read(index, ROWS).float(), own)
            yield {n: rows[..., columns[n]].reshape(*own.shape, *shape) for n, shape in shapes.items()}


#: Name of a structure to what fits it.
STRUCTURES: dict[str, Callable[[Task], Fit]] = {
    "full": fit_full,
    **{name: partial(fit_blocks, structure=name) for name in BLOCK_STRUCTURES},
}


def rows_bytes(task: Task, questions: int, contrasts: int) -> int:
    """What the rows of so many questions take.

    Args:
        task: What the curvature is fitted to.
        questions: How many questions.
        contrasts: Most contrasts of a question: its options less one.
    """
    return questions * contrasts * task.dtype.itemsize * sum(p.numel() for p in task.network.parameters.values())


def check_structure(structure: str) -> None:
    """Refuse a structure that is not known.

    Raises:
        UsageError: naming those that are.
    """
    require_choice("Laplace's structure", structure, STRUCTURES)


def check_structure_of(network: Network, structure: str) -> None:
    """Refuse a structure that a network's curvature cannot have.

    Args:
        network: The network.
        structure: Its name; ``auto`` is allowed everywhere.

    Raises:
        UsageError: a structure of blocks for a module of another kind.
    """
    if network.model is None and structure in BLOCK_STRUCTURES:
        raise UsageError(f"structure {structure} needs a module of this package; allowed for others: full")


def check_space(task: Task, needed: int) -> None:
    """Refuse a pass whose shards would not fit on the disk.

    Args:
        task: What the curvature is fitted to.
        needed: Bytes that the shards take at most.

    Raises:
        UsageError: naming the sizes.
    """
    if task.folder is not None:
        there = sum(file.stat().st_size for file in task.folder.glob("*/*.safetensors"))
        check_disk(task.folder, max(0, needed - there))
