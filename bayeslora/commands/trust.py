"""What a configuration that came with a run folder or a checkpoint may name: classes that are known, nothing else.

A configuration can name any importable class, and naming is running. One that the user writes or names is theirs;
one that lies beside a checkpoint may be anybody's. It is read as data and refused unless every class in it is known.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from bayeslora.commands.arguments import CONFIG, take_options
from bayeslora.errors import UsageError

FLAG = "--trust-config"
_WORD = re.compile(r"[\w.]+")
# Lightning's classes that take plain values alone; others take functions, which a file can name as well.
_PLAIN = {
    "CSVLogger",
    "DDPStrategy",
    "EarlyStopping",
    "GradientAccumulationScheduler",
    "LearningRateMonitor",
    "MLFlowLogger",
    "ModelCheckpoint",
    "ModelSummary",
    "RichProgressBar",
    "SingleDeviceStrategy",
    "TQDMProgressBar",
    "TensorBoardLogger",
    "WandbLogger",
}
_FUNCTIONS = ("logits_fn", "label_fn", "loader", "train_batches", "val_batches", "init_fn", "worker_init_fn")
_SECTIONS = ("model", "data")  # a text stands for a class here, or for a file that names one
# A dotted path, or a file with a configuration of its own: either can stand wherever a class is expected.
_NAMES_CODE = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+|.*\.(ya?ml|json)")
# What takes any text, such as a folder or a model's name, and never code.
_PROTOCOL = ("protocol", "template", "option", "option_separator", "separator", "words", "end", "system")
_FOLDERS = ("default_root_dir", "pretrained", "tokenizer", "revision", "adapter", "path", "data_dir", "directory")
_PLAIN_TEXT = (*_FOLDERS, *_PROTOCOL)


def read_config(file: Path) -> dict[str, Any]:
    """The configuration of a run as plain values.

    Raises:
        UsageError: it cannot be read, or is none.
    """
    try:
        config = yaml.safe_load(file.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UsageError(f"{file} cannot be read ({_first_line(error)}); give the configuration with -c") from error
    if not isinstance(config, dict):
        raise UsageError(f"{file} holds no configuration; give the configuration with -c")
    return config


def refuse_unknown_classes(config: Mapping[str, Any], source: Path, args: Sequence[str] = ()) -> None:
    """Refuse a configuration that names a class, or a function, that is not known to be harmless.

    Args:
        config: The configuration.
        source: The file it comes from.
        args: What the user typed; a class that is named there, or in a file that is given there, is theirs.

    Raises:
        UsageError: naming the first such class.
    """
    asked_for = {*_WORD.findall(" ".join(args)), *_named(_given(args))}
    for name in _named(config):
        if name not in asked_for and not _known(name):
            raise UsageError(
                f"{source} names {name}, which is not a class of this package; a run folder's configuration may name "
                f"only those. If you trust it, add {FLAG}, or give your own configuration with -c"
            )


def _given(args: Sequence[str]) -> list[Any]:
    """The configurations that the user gave."""
    files = [Path(file) for file in take_options(args, (CONFIG,))[0][CONFIG]]
    return [read_config(file) for file in files if file.is_file()]


def _known(name: str) -> bool:
    """Whether a class is this package's, or one of Lightning's that take plain values."""
    import bayeslora.callbacks
    import bayeslora.datamodules
    import bayeslora.lightning_modules

    path, _, bare = name.rpartition(".")
    if path.split(".")[0] == "bayeslora":
        return True
    ours = (bayeslora, bayeslora.callbacks, bayeslora.datamodules, bayeslora.lightning_modules)
    if not path and any(bare in room.__all__ for room in ours):
        return True
    return bare in _PLAIN and (not path or path.split(".")[0] in ("lightning", "pytorch_lightning"))


def _named(value: Any, key: str = "") -> Iterator[str]:
    """Every class, function and further file that a configuration names, by the keys under which they may stand."""
    if isinstance(value, Mapping):
        for inner_key, inner in value.items():
            yield from _named(inner, str(inner_key))
    elif isinstance(value, list):
        for inner in value:
            yield from _named(inner, key)
    elif isinstance(value, str):
        if key in _FUNCTIONS:
            yield f"{value} (as {key})"
        elif key in ("class_path", *_SECTIONS) or (key not in _PLAIN_TEXT and _NAMES_CODE.fullmatch(value)):
            yield value


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
