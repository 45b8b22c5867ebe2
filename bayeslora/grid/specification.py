"""The file of a grid: its methods, datasets and seeds, as names of configuration files and as options of its own."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from bayeslora.configs import CONFIGS
from bayeslora.configs.yaml_once import OnceLoader
from bayeslora.errors import UsageError, require, require_choice

_KEYS = ("title", "out", "seeds", "threads", "reference", "published", "common", "datasets", "methods")
_PART_KEYS = ("configs", "options")
_METHOD_KEYS = (*_PART_KEYS, "of", "checkpoint")
_CHECKPOINTS = ("last", "best", "base")
_NAME = re.compile(r"[A-Za-z0-9][\w.+-]*")  # a name is a folder and a part of a key


@dataclass(frozen=True)
class Part:
    """Configuration files and options that belong to one name.

    Attributes:
        name: Its name.
        files: Configuration files, from left to right.
        options: What is put on top of them, as a configuration file would say it.
        arguments: What is put on top of all parts' files and options, as the command line would say it.
    """

    name: str
    files: tuple[Path, ...] = ()
    options: Mapping[str, Any] | None = None
    arguments: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Method(Part):
    """A row of the table.

    Attributes:
        of: The method whose training it uses and on top of which its own configuration comes; None trains its own.
        checkpoint: ``last`` or ``best`` of that training, or ``base``: the base model, for which nothing is trained.
    """

    of: str | None = None
    checkpoint: str = "last"


@dataclass(frozen=True)
class Grid:
    """Methods x datasets x seeds.

    Attributes:
        file: Where it was read.
        title: What its page is called.
        out: Absolute folder of its run folders.
        seeds: The seeds of every row.
        threads: CPU threads of every cell; sums differ by it.
        reference: The method that the others are compared with.
        common: What all cells share.
        datasets: By name.
        methods: By name, in the order of the table's rows.
        published: A CSV file of published numbers to stand beside ours, or None.
    """

    file: Path
    title: str
    out: Path
    seeds: tuple[int, ...]
    threads: int
    reference: str
    common: Part
    datasets: Mapping[str, Part]
    methods: Mapping[str, Method]
    published: Path | None = None

    def training(self, method: str) -> str:
        """The method whose training a method uses; itself, where it trains or needs no training."""
        above = self.methods[method].of
        return method if above is None else self.training(above)

    def parts(self, method: str, dataset: str) -> list[Part]:
        """What makes a cell's configuration, from left to right: what is common, the dataset, the method on its own.

        Args:
            method: A row of the grid.
            dataset: A dataset of the grid.
        """
        rows: list[Part] = []
        name: str | None = method
        while name is not None:
            rows.insert(0, self.methods[name])
            name = self.methods[name].of
        return [self.common, self.datasets[dataset], *rows]

    def narrowed(self, methods: Sequence[str], datasets: Sequence[str], seeds: Sequence[int]) -> Grid:
        """The same grid with some of its rows, datasets and seeds; nothing given leaves all. Needed trainings stay.

        Args:
            methods: The rows to keep; empty for all.
            datasets: The datasets to keep; empty for all.
            seeds: The seeds to keep; empty for all.

        Raises:
            UsageError: a method or a dataset that the grid does not have.
        """
        for what, wanted, known in (("method", methods, self.methods), ("dataset", datasets, self.datasets)):
            for name in wanted:
                require_choice(what, name, known)
        kept = {*methods} or {*self.methods}
        needed = kept | {above for name in kept for above in self._above(name)}
        return replace(
            self,
            seeds=tuple(seeds) or self.seeds,
            datasets={name: part for name, part in self.datasets.items() if name in ({*datasets} or self.datasets)},
            methods={name: part for name, part in self.methods.items() if name in needed},
            reference=self.reference if self.reference in needed else next(n for n in self.methods if n in needed),
        )

    def _above(self, method: str) -> list[str]:
        above = self.methods[method].of
        return [] if above is None else [above, *self._above(above)]


def read_grid(file: Path, out: Path | None = None) -> Grid:
    """A grid from its file.

    Args:
        file: A YAML file.
        out: Folder of the run folders instead of the file's own.

    Raises:
        UsageError: a key, a method or a dataset that is not known, names that are no names or the same, no seeds.
    """
    content = read_mapping(file, "the grid", _KEYS)
    for key in ("datasets", "methods"):
        if not content.get(key):
            raise UsageError(f"{file}: {key} is missing; give at least one name")
    library = _library(file)
    datasets = {
        name: Part(name, *_part(file, library, f"dataset {name}", given, _PART_KEYS, f"data/{name}"))
        for name, given in _named(file, "dataset", content["datasets"]).items()
    }
    methods = {
        name: _method(file, library, name, given) for name, given in _named(file, "method", content["methods"]).items()
    }
    _check_rows(file, methods)
    seeds = content.get("seeds", [0])
    whole = isinstance(seeds, list) and seeds and all(type(seed) is int and seed >= 0 for seed in seeds)
    require(f"{file}: seeds", seeds, bool(whole) and len({*seeds}) == len(seeds), "different whole numbers from 0 on")
    threads = content.get("threads", 1)
    require(f"{file}: threads", threads, type(threads) is int and threads >= 1, "1 or more")
    reference = content.get("reference", next(iter(methods)))
    require_choice(f"{file}: reference", reference, methods)
    common = Part("common", *_part(file, library, "common", content.get("common") or {}, _PART_KEYS, None))
    folder = out or Path(content.get("out") or f"runs/{file.stem}")
    return Grid(
        file=file,
        title=str(content.get("title") or file.stem),
        out=folder.expanduser().resolve(),
        seeds=tuple(seeds),
        threads=threads,
        reference=reference,
        common=common,
        datasets=datasets,
        methods=methods,
        published=_published(file, content.get("published")),
    )


def _published(file: Path, name: Any) -> Path | None:
    if name is None:
        return None
    found = file.parent / str(name)
    require(f"{file}: published", name, found.is_file(), f"a CSV file, relative to {file.parent}")
    return found


def _method(file: Path, library: Path, name: str, given: Any) -> Method:
    own = given or {}
    files, options = _part(file, library, f"method {name}", own, _METHOD_KEYS, f"method/{name}")
    checkpoint = own.get("checkpoint", "last")
    require_choice(f"{file}: checkpoint of method {name}", checkpoint, _CHECKPOINTS)
    return Method(name, files, options, of=own.get("of"), checkpoint=checkpoint)


def _check_rows(file: Path, methods: Mapping[str, Method]) -> None:
    """Every method's training is a method's of the grid, and no method is on top of itself."""
    for name, method in methods.items():
        seen = [name]
        while method.of is not None:
            require_choice(f"{file}: 'of' of method {name}", method.of, methods)
            method = methods[method.of]
            if method.name in seen:
                raise UsageError(f"{file}: the methods {', '.join(seen)} are on top of one another; one has to train")
            seen.append(method.name)


def _named(file: Path, what: str, given: Any) -> dict[str, Any]:
    """Entries by name, from a mapping or from a list of bare names."""
    names = [*given] if isinstance(given, dict | list) else [given]
    for name in names:
        holds = isinstance(name, str) and _NAME.fullmatch(name) is not None
        require(f"{file}: name of a {what}", name, holds, "letters, digits, and . + - _ within")
    lower = [name.lower() for name in names]
    for place, name in enumerate(lower):
        if name in lower[:place]:
            other = names[lower.index(name)]
            raise UsageError(
                f"{file}: two {what}s are called {other!r} and {names[place]!r}, which is one folder; rename one"
            )
    return dict(given) if isinstance(given, dict) else dict.fromkeys(names)


def _part(
    file: Path, library: Path, what: str, given: Any, keys: Sequence[str], default: str | None
) -> tuple[tuple[Path, ...], Mapping[str, Any] | None]:
    """Files and options of one entry; an entry without files has the shipped one of its name."""
    own = _mapping(file, given or {}, what, keys)
    configs = own.get("configs", [default] if default else [])
    if not isinstance(configs, list):
        raise UsageError(f"{file}: configs of {what} is {configs!r}; allowed: a list of files")
    options = own.get("options")
    if options is not None and not isinstance(options, dict):
        raise UsageError(f"{file}: options of {what} is {options!r}; allowed: a mapping, as in a configuration file")
    return tuple(_config(file, library, what, str(name)) for name in configs), options


def _config(file: Path, library: Path, what: str, name: str) -> Path:
    """A configuration file: beside the grid's, or one that is shipped, such as ``method/blob``."""
    for folder in (file.parent, library):
        for ending in ("", ".yaml"):
            if (found := folder / f"{name}{ending}").is_file():
                return found.resolve()
    kind = name.partition("/")[0]
    known = sorted(f"{kind}/{path.stem}" for path in (library / kind).glob("*.yaml"))
    listed = f"; shipped are {', '.join(known)}" if known else ""
    raise UsageError(f"{file}: {what} has no configuration {name!r}; give a file relative to {file.parent}{listed}")


def _library(file: Path) -> Path:
    """The nearest folder above a grid's file that is laid out as the shipped configurations are, or else those."""
    return next((folder for folder in file.resolve().parents if {"method", "data"} <= _folders(folder)), CONFIGS)


def _folders(folder: Path) -> set[str]:
    return {name for name in ("method", "data", "base") if (folder / name).is_dir()}


def read_mapping(file: Path, what: str, keys: Sequence[str]) -> dict[str, Any]:
    """The content of a YAML file that is one mapping.

    Args:
        file: The file.
        what: What it is called in messages.
        keys: The keys that it may have.

    Raises:
        UsageError: it is not there, no YAML, no mapping, or has another key.
    """
    return _mapping(file, _load(file, what), what, keys)


def _load(file: Path, what: str) -> Any:
    try:
        with file.open(encoding="utf-8") as stream:
            return yaml.load(stream, OnceLoader)
    except FileNotFoundError:
        raise UsageError(f"there is no file {file}; give the file of {what}") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UsageError(f"{file} cannot be read as YAML: {' '.join(str(error).split())}") from error


def _mapping(file: Path, value: Any, what: str, keys: Sequence[str]) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise UsageError(f"{file}: {what} is no mapping; its keys are {', '.join(keys)}")
    for key in value:
        require_choice(f"{file}: key of {what}", key, keys)
    return value
