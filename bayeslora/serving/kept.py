"""The folder ``serving/`` of a run: all that answers a new question as the test's questions were answered.

``serving.json`` says which module predicts, how its posterior is used, what logits are divided by and how questions are
asked; ``weights.safetensors`` holds the module's parameters, ``posterior/`` what a callback has put in their place, and
``decision.json`` the decision rule. Training data are not needed, and nothing is fitted again.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from bayeslora.callbacks.laplace_prediction import LaplacePrediction
from bayeslora.callbacks.posterior import WeightPrediction
from bayeslora.datamodules.prompting import Prompting
from bayeslora.decisions.rule import DecisionRule
from bayeslora.decisions.rule_file import FILE as RULE
from bayeslora.decisions.rule_file import load_rule, save_rule
from bayeslora.errors import UsageError
from bayeslora.files import file_checksum, read_record, replacing_folder, write_record
from bayeslora.models.hub import ADAPTER_FILES, adapter_folder
from bayeslora.models.pretrained import EMBEDDED
from bayeslora.posteriors.state import load_posterior, save_posterior
from bayeslora.types import Posterior

SCHEMA = 1
FOLDER = "serving"
_RECORD, _WEIGHTS, _POSTERIOR, _ADAPTER = "serving.json", "weights.safetensors", "posterior", "adapter"
_KINDS: dict[str, Callable[..., WeightPrediction | LaplacePrediction]] = {
    "weights": WeightPrediction,
    "laplace": LaplacePrediction,
}
_FOLDERS = ("pretrained", "adapter")  # of a backbone
_REMEDY = "test the run again (bayeslora test --overwrite)"
Prediction = WeightPrediction | LaplacePrediction


@dataclass(frozen=True)
class Kept:
    """What answers questions.

    Attributes:
        method: What tables call it.
        module: Name of the LightningModule's class.
        arguments: Of its constructor.
        weights: Its parameters.
        base: Fingerprint of the base model.
        prompting: How questions are asked.
        precision: Of the arithmetic, as a trainer names it.
        batch_size: Questions in a batch.
        prediction: How a posterior predicts in the place of the parameters; None where there is none.
        posterior: That posterior.
        temperature: What logits are divided by at the end.
        rule: The decision rule; None where the run has none.
        checkpoint: What was tested.
    """

    method: str
    module: str
    arguments: Mapping[str, Any]
    weights: Mapping[str, Tensor]
    base: str
    prompting: Prompting
    precision: str = "32-true"
    batch_size: int = 16
    prediction: Prediction | None = None
    posterior: Posterior | None = None
    temperature: float = 1.0
    rule: DecisionRule | None = None
    checkpoint: str | None = None


def save(kept: Kept, root: Path | str, adapter_config: Mapping[str, Any], linked: Path | None = None) -> None:
    """Write ``serving/`` into a run folder, whole or not at all.

    The adapter that the module starts from, if any, is copied: it may be gone when the run is asked.

    Args:
        kept: What to write.
        root: The run folder.
        adapter_config: peft's configuration of the module's adapter.
        linked: Where the posterior is on disk already: its files are linked instead of written again.
    """
    with replacing_folder(Path(root) / FOLDER) as folder:
        kept = replace(kept, arguments=_with_adapter_in(folder / _ADAPTER, kept.arguments))
        save_file({name: value.detach().contiguous().cpu() for name, value in kept.weights.items()}, folder / _WEIGHTS)
        if kept.posterior is not None:
            if linked is not None:
                shutil.copytree(linked, folder / _POSTERIOR, copy_function=_link)
            else:
                save_posterior(kept.posterior, folder / _POSTERIOR, adapter_config, kept.base)
        if kept.rule is not None:
            save_rule(kept.rule, folder / RULE)
        write_record(folder / _RECORD, {**_record(kept), "weights": file_checksum(folder / _WEIGHTS)})


def load(root: Path | str) -> Kept:
    """Read what :func:`save` wrote.

    Raises:
        UsageError: the run was not tested, or by an earlier version; a file is damaged, or of another schema.
    """
    folder = Path(root) / FOLDER
    if not (folder / _RECORD).is_file():
        raise UsageError(f"{root} has no {FOLDER}/{_RECORD}: {_why(Path(root))}")
    record = read_record(folder / _RECORD, _REMEDY)
    if record.get("schema") != SCHEMA:
        raise UsageError(
            f"{folder / _RECORD} has schema {record.get('schema')}; this version reads {SCHEMA}; {_REMEDY}"
        )
    if not (folder / _WEIGHTS).is_file() or file_checksum(folder / _WEIGHTS) != record["weights"]:
        raise UsageError(f"{folder / _WEIGHTS} is damaged or missing (it is not what was written there); {_REMEDY}")
    try:
        return _kept(record, folder)
    except UsageError:
        raise
    except (KeyError, TypeError, ValueError, SafetensorError) as error:
        raise UsageError(f"{folder / _RECORD} is damaged ({type(error).__name__}: {error}); {_REMEDY}") from error


def _record(kept: Kept) -> dict[str, Any]:
    prediction = None
    if kept.prediction is not None:
        kind = next(name for name, own in _KINDS.items() if own is type(kept.prediction))
        prediction = {"kind": kind, **asdict(kept.prediction)}
    plain = ("method", "module", "base", "precision", "batch_size", "temperature", "checkpoint")
    arguments, asked = dict(kept.arguments), kept.prompting.to_dict()
    if backbone := arguments.get("backbone"):
        arguments["backbone"] = backbone | {name: _whole_path(backbone[name]) for name in _FOLDERS if name in backbone}
    return {
        "schema": SCHEMA,
        **{name: getattr(kept, name) for name in plain},
        "arguments": arguments,
        "prompting": {**asked, "tokenizer": _whole_path(asked["tokenizer"])},
        "prediction": prediction,
        "has_rule": kept.rule is not None,
    }


def _kept(record: Mapping[str, Any], folder: Path) -> Kept:
    prediction = None
    if record["prediction"] is not None:
        values = dict(record["prediction"])
        kind = _KINDS[values.pop("kind")]
        prediction = kind(**{name: tuple(v) if isinstance(v, list) else v for name, v in values.items()})
    plain = ("method", "module", "base", "precision", "batch_size", "temperature", "checkpoint")
    arguments = dict(record["arguments"])
    if (folder / _ADAPTER).is_dir():
        arguments["backbone"] = {**arguments["backbone"], "adapter": str(folder / _ADAPTER)}
    return Kept(
        **{name: record[name] for name in plain},
        arguments=arguments,
        weights=load_file(folder / _WEIGHTS),
        prompting=Prompting.from_dict(record["prompting"]),
        prediction=prediction,
        posterior=None if prediction is None else load_posterior(folder / _POSTERIOR, record["base"]),
        rule=load_rule(folder / RULE) if record["has_rule"] else None,
    )


def _with_adapter_in(folder: Path, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """A module's arguments without the adapter it starts from, whose files are copied; a pickle stays where it is."""
    backbone = dict(arguments.get("backbone") or {})
    if backbone.get("adapter") is None:
        return dict(arguments)
    source = adapter_folder(backbone["adapter"])
    if not (source / ADAPTER_FILES[1]).is_file():
        return dict(arguments)
    folder.mkdir()
    for name in ADAPTER_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)
    return {**arguments, "backbone": {**backbone, "adapter": None}}


def _whole_path(value: Any) -> Any:
    """A folder that is there by its whole path, so that it is found from anywhere; anything else as it is."""
    is_folder = isinstance(value, str) and value != EMBEDDED and Path(value).is_dir()
    return str(Path(value).resolve()) if is_folder else value


def _why(root: Path) -> str:
    if not root.is_dir():
        return "there is no such folder; give the folder of a run"
    if (root / "test").is_dir():
        return f"it was tested by an earlier version; {_REMEDY}"
    if (root / "checkpoints").is_dir() or (root / "posterior").is_dir():
        return "it was not tested, which writes what answers questions; run bayeslora test with its configuration"
    return "it holds no run; give the folder of one that was tested"


def _link(source: str, target: str) -> None:
    """A second name of a file; a copy where the file system has none."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
