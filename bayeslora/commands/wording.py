"""Errors of the parser and of Lightning in one line each, and a terminal without the libraries' own remarks."""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from lightning.pytorch.utilities.exceptions import MisconfigurationException

import bayeslora.datamodules
import bayeslora.lightning_modules
from bayeslora.errors import UsageError


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Parser errors and Lightning's refusals as this package's own kind."""
    from jsonargparse import ArgumentError

    try:
        yield
    except UsageError:
        raise
    except (ArgumentError, ValueError, MisconfigurationException) as error:
        own = _own_cause(error)
        if own is None and not isinstance(error, ArgumentError | MisconfigurationException):
            raise
        raise own or UsageError(_condense(str(error))) from error


def _own_cause(error: BaseException) -> UsageError | None:
    """The refusal that a parser's error wraps: jsonargparse raises its own for whatever a class raises."""
    while (cause := error.__cause__ or error.__context__) is not None:
        if isinstance(cause, UsageError):
            return cause
        error = cause
    return None


def _condense(message: str) -> str:
    """What went wrong in one line, from a message that jsonargparse spreads over many, or from Lightning's."""
    text = " ".join(message.split())
    if unknown := re.search(r"Expected a dot import path string: (\S+)", text):
        names = [name for name in bayeslora.datamodules.__all__ if name.endswith("DataModule")]
        names = names if 'key "data"' in text else bayeslora.lightning_modules.__all__
        return f"there is no class {unknown[1]}; allowed: {', '.join(names)}, or the import path of your own"
    if option := re.search(r"Problem with given class_path '([^']+)': Option '([^']+)' is not accepted", text):
        name = option[1].rpartition(".")[2]
        return f"{name} has no option {option[2]!r}; --model.help {name} or --data.help {name} lists them"
    if expected := re.findall(r'Parser key "([^"]+)": Expected a (.+?)\. Got value: (\S+)', text):
        key, kind, value = expected[-1]
        kind = kind.removeprefix("<class '").removesuffix("'>")
        return f"{key} is {value}; allowed: {kind}"
    if "backend found" in text:
        return f"{text.rstrip('!')} on this machine; give --trainer.accelerator cpu, or run where there is one"
    return text


def quiet() -> None:
    """Leave the terminal to the run: no loading bars and advertisements of the libraries."""
    import transformers

    warnings.filterwarnings("ignore", message="LightningCLI's args parameter")
    warnings.filterwarnings("ignore", message=".*treespec, LeafSpec.*is deprecated")
    warnings.filterwarnings("ignore", message=".*does not have many workers")
    warnings.filterwarnings("ignore", message="Using ModelCheckpoint with manual optimization")
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    logging.getLogger("lightning.pytorch.utilities.rank_zero").setLevel(logging.WARNING)
