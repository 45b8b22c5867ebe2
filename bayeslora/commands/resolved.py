"""Configurations as they resolve, with every default written out and what they read known by content; nothing runs."""

from __future__ import annotations

import json
import logging
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import yaml

from bayeslora.commands.arguments import configs
from bayeslora.commands.lightning import CommandLine, run
from bayeslora.datamodules.splits import fingerprint as questions_fingerprint
from bayeslora.errors import UsageError
from bayeslora.grid.cells import Cell, training_cell
from bayeslora.grid.content import Contents
from bayeslora.grid.fingerprint import document, fingerprint
from bayeslora.grid.specification import Grid, Part
from bayeslora.models.hub import adapter_folder
from bayeslora.models.pretrained import cannot_load, resolve_pretrained

_FILES = ["*.safetensors", "*.bin", "*.json", "*.model", "*.txt", "*.jinja"]


class _Resolved(Exception):
    """A configuration has been read, and nothing more is to be done with it."""

    def __init__(self, config: dict[str, Any], datamodule: Any) -> None:
        super().__init__()
        self.config, self.datamodule = config, datamodule


class _Reader(CommandLine):
    """Reads a command line as ``fit`` does, makes the objects it names, and stops there."""

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """``fit`` alone: the parsers of the others would be made for nothing."""
        return {"fit": CommandLine.subcommands()["fit"]}

    def before_instantiate_classes(self) -> None:
        """No run folder is looked at."""

    def instantiate_classes(self) -> None:
        """Make what the configuration names, so that what it refuses is refused now; a trainer is not made."""
        made = self.parser.instantiate_classes(self.config)
        config = self.config[self.subcommand]
        raise _Resolved(config.as_dict(), made[self.subcommand].data)


class Documents:
    """The document of every cell of a grid, see :mod:`bayeslora.grid.fingerprint`.

    Each method's configuration on each dataset is read once; cells that differ in their seed share it.

    Args:
        grid: The grid.
    """

    def __init__(self, grid: Grid) -> None:
        self.grid = grid
        self.contents = Contents(grid.out / ".contents.json")
        self._read: dict[tuple[str, str], tuple[dict[str, Any], dict[str, Any]]] = {}
        self._questions: dict[str, Any] = {}

    def of(self, cell: Cell) -> dict[str, Any]:
        """What the cell's results depend on.

        Raises:
            UsageError: its configuration is refused, or what it reads is not here.
        """
        training = training_cell(self.grid, cell)
        above = None if training == cell else fingerprint(self.of(training))
        config, reads = self.resolved(cell.method, cell.dataset)
        checkpoint = self.grid.methods[cell.method].checkpoint
        try:
            return document(config, reads, cell.seed, self.grid.threads, above, checkpoint)
        except UsageError as error:
            raise UsageError(f"{cell.dataset}/{cell.method}: {error}") from error

    def resolved(self, method: str, dataset: str) -> tuple[dict[str, Any], dict[str, Any]]:
        """The configuration of a method on a dataset, and what it reads by content.

        Args:
            method: A row of the grid.
            dataset: A dataset of the grid.
        """
        if (method, dataset) not in self._read:
            try:
                config, datamodule = resolve(self.grid.parts(method, dataset))
                self._read[method, dataset] = config, self._reads(config, datamodule)
            except UsageError as error:
                raise UsageError(f"{dataset}/{method}: {error}") from error
        return self._read[method, dataset]

    def _reads(self, config: dict[str, Any], datamodule: Any) -> dict[str, Any]:
        backbone = config["model"]["init_args"].get("backbone") or {}
        data = config["data"].get("init_args") or {}
        found: dict[str, Any] = {
            "base": self._pretrained(backbone.get("pretrained", "embedded"), backbone.get("revision"))
        }
        if (tokenizer := data.get("tokenizer")) is not None:
            found["tokenizer"] = self._pretrained(tokenizer, data.get("revision"))
        if adapter := backbone.get("adapter"):
            found["adapter"] = self.contents.folder(_existing(adapter_folder(adapter)))
        key = json.dumps({**data, "seed": None, "class": config["data"]["class_path"]}, sort_keys=True, default=str)
        if key not in self._questions:
            self._questions[key] = _questions(datamodule)
        protocol = getattr(datamodule, "protocol", None)
        if protocol is not None:
            found["protocol"] = protocol.saved()
        return {**found, "questions": self._questions[key]}

    def _pretrained(self, name: str, revision: str | None) -> str:
        folder = Path(resolve_pretrained(name)).expanduser()
        if folder.is_dir():
            return self.contents.folder(folder)
        from huggingface_hub import snapshot_download

        try:
            return self.contents.folder(Path(snapshot_download(name, revision=revision, allow_patterns=_FILES)))
        except Exception as error:  # half a dozen types, all of which mean that it is not here
            raise cannot_load("model", name, error) from error


def resolve(parts: Sequence[Part]) -> tuple[dict[str, Any], Any]:
    """The configuration that some parts make, and its DataModule.

    Args:
        parts: From left to right.

    Raises:
        UsageError: it is refused.
    """
    logging.getLogger("lightning.fabric.utilities.seed").setLevel(logging.WARNING)
    with config_options(parts) as options:
        try:
            run(["fit", *options], _Reader)
        except _Resolved as found:
            return found.config, found.datamodule
    raise AssertionError("the reader ends with what it has read")


@contextmanager
def config_options(parts: Sequence[Part]) -> Iterator[list[str]]:
    """The options that give the configuration of some parts; options of their own as files that end with the block."""
    with ExitStack() as files:
        found: list[str] = []
        for part in parts:
            found += map(str, part.files)
            if part.options:
                own = files.enter_context(tempfile.NamedTemporaryFile("w", suffix=".yaml"))
                yaml.safe_dump(dict(part.options), own)
                own.flush()
                found.append(own.name)
        arguments = [f"--{name}={value}" for part in parts for name, value in (part.arguments or {}).items()]
        yield [*configs(found), *arguments]


def _questions(datamodule: Any) -> dict[str, Any]:
    """The questions of every split, by content, whatever a seed draws of them."""
    if not hasattr(datamodule, "benchmark"):
        own = getattr(datamodule, "fingerprint", None)
        if own is None:
            raise UsageError(
                f"{type(datamodule).__name__} does not say what its questions are; give it an attribute `fingerprint`, "
                "or take a DataModule of this package"
            )
        return {"": str(own)}
    sets = [datamodule.benchmark, *datamodule.ood.values()]
    return {
        benchmark.name: {
            split: questions_fingerprint([benchmark.load(split, datamodule.data_dir)])[:16]
            for split in benchmark.labelled
        }
        for benchmark in sets
    }


def _existing(folder: Path) -> Path:
    if not folder.is_dir():
        raise UsageError(f"there is no adapter {folder}; give the folder of a peft adapter")
    return folder
