"""Errors of the parser and of Lightning in one line each, and a terminal without the libraries' own remarks."""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from lightning.pytorch.utilities.exceptions import MisconfigurationException

import bayeslora.callbacks
import bayeslora.datamodules
import bayeslora.lightning_modules
from bayeslora.errors import UsageError

# A name that is no path, or a path along which the module or the class is not there.
_NO_CLASS = (
    r"Expected a dot import path string: (\S+)|class_path '(([\w.]+?)\.[\w.]+)': (?:module|No module named) '\3'"
)


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
    if unknown := re.search(_NO_CLASS, text):
        return f"there is no class {unknown[1] or unknown[2]}; allowed: {_classes(text)}"
    if abstract := re.search(r"instantiatable class, but (?:(\S+) )?is abstract.*Given value: (\S+)", text):
        name = abstract[1] or abstract[2]
        return f"class {name} leaves methods for its subclasses to define; allowed: {_classes(text)}"
    if other := re.search(r"Import path (?:(\S+) )?does not correspond to a subclass of (\w+).*value: (\S+)", text):
        return f"{other[1] or other[3]} is no {other[2]}; allowed: {_classes(text)}"
    if option := re.search(r"Problem with given class_path '([^']+)': Option '([^']+)' is not accepted", text):
        name = option[1].rpartition(".")[2]
        return f"{name} has no option {option[2]!r}; --model.help {name} or --data.help {name} lists them"
    if expected := re.findall(r'Parser key "([^"]+)": Expected a (.+?)\. Got value: (\S+)', text):
        key, kind, value = expected[-1]
        kind = kind.removeprefix("<class '").removesuffix("'>")
        return f"{key} is {value}; allowed: {kind}"
    if union := re.search(
        r'Parser key "([^"]+)": Does not validate against any of the Union.*Given value: (.+?)$', text
    ):
        return f"{union[1]} is {union[2]}; allowed: {_kinds(text)}"
    if missing := re.search(r"the following arguments are required: (.+)", text):
        return f"{missing[1]} is not given; give -c CONFIG, for example -c quickstart, or the options"
    if "Unexpected config" in text:
        return "a configuration file is empty, or holds no options; give -c a YAML file, or a name such as quickstart"
    if "enable_checkpointing=False" in text:
        return (
            "enable_checkpointing is false, but a run is resumed and tested by its checkpoints; leave it out, or use "
            "--trainer.fast_dev_run for a trial that leaves nothing"
        )
    if "backend found" in text:
        return f"{text.rstrip('!')} on this machine; give --trainer.accelerator cpu, or run where there is one"
    return text


def _classes(text: str) -> str:
    """What may be named in place of a class that a parser's message refuses, by the option it is about."""
    own = {
        "model": bayeslora.lightning_modules.__all__,
        "data": [name for name in bayeslora.datamodules.__all__ if name.endswith("DataModule")],
        "trainer.callbacks": bayeslora.callbacks.__all__,
    }
    option = re.search(r'key "([\w.]+)"', text)
    names = own.get(option[1], []) if option else []
    return ", or ".join(filter(None, (", ".join(names), "the import path of your own")))


def _kinds(text: str) -> str:
    """The kinds of values that a parser's message about a union lists, in a user's words."""
    listed = re.search(r"Subtypes: \[(.+?)\] Errors", text)
    kinds = listed[1] if listed else ""
    choices = [choice for group in re.findall(r"Literal\[(.+?)\]", kinds) for choice in group.split(", ")]
    words = {"<class 'int'>": "a whole number", "<class 'float'>": "a number", "<class 'str'>": "text"}
    words |= {"<class 'bool'>": "true or false", "<class 'NoneType'>": "null"}
    plain = [word for kind, word in words.items() if kind in kinds]
    return ", ".join(dict.fromkeys([*(choice.strip("'") for choice in choices), *plain])) or kinds


def quiet() -> None:
    """Leave the terminal to the run: no loading bars and advertisements of the libraries."""
    import transformers

    warnings.filterwarnings("ignore", message="LightningCLI's args parameter")
    # At every resume and every test of a run that was moved; both are what was asked for.
    warnings.filterwarnings("ignore", message="Checkpoint directory .* exists and is not empty")
    warnings.filterwarnings("ignore", message="The dirpath has changed from")
    warnings.filterwarnings("ignore", message=".*treespec, LeafSpec.*is deprecated")
    warnings.filterwarnings("ignore", message=".*does not have many workers")
    warnings.filterwarnings("ignore", message="Using ModelCheckpoint with manual optimization")
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    logging.getLogger("lightning.pytorch.utilities.rank_zero").setLevel(logging.WARNING)
