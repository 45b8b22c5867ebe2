"""Posteriors on disk: the mean as a plain peft adapter, and beside it the spread around that mean.

A posterior's folder holds ``adapter_model.safetensors`` and ``adapter_config.json``, which plain peft loads,
``posterior.safetensors`` with the remaining tensors of its state, and ``posterior.json`` with the family, the schema,
the base's fingerprint, the state's plain values and the checksums of the other files. A mixture holds its components in
``000/``, ``001/``, ...
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from bayeslora.errors import UsageError
from bayeslora.files import file_checksum, read_record, replacing_folder, write_record
from bayeslora.types import Posterior

SCHEMA = 1
_ELSEWHERE = {  # families that are not in the file of this folder that has their name
    "contextual": "c_lora",
    "laplace_full": "laplace.full",
    "laplace_kronecker": "laplace.kronecker",
    "laplace_diagonal": "laplace.diagonal",
}
_ADAPTER, _CONFIG = "adapter_model.safetensors", "adapter_config.json"
_TENSORS, _RECORD = "posterior.safetensors", "posterior.json"
_CHECKED = (_ADAPTER, _CONFIG, _TENSORS)
_MEAN = "mean/"
_REMEDY = "restore the folder from a copy, or fit or test the run again"


def state_of(kind: str, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Entries ``kind/name`` of a flat state from a mapping of names to tensors.

    Args:
        kind: The first part of the entries' names.
        parameters: Name to tensor.
    """
    return {f"{kind}/{name}": tensor for name, tensor in parameters.items()}


def parameters_of(kind: str, state: Mapping[str, Any]) -> dict[str, Tensor]:
    """The inverse of :func:`state_of`: the entries under ``kind/``.

    Args:
        kind: The first part of the entries' names.
        state: The flat state.
    """
    prefix = f"{kind}/"
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}


def save_posterior(
    posterior: Posterior, directory: Path | str, adapter_config: Mapping[str, Any] | None = None, base: str = ""
) -> None:
    """Write a posterior; what was in the folder is replaced once the new one is complete.

    Args:
        posterior: The posterior.
        directory: Its folder.
        adapter_config: peft's configuration as a dict; None for parameters that are not peft's.
        base: Fingerprint of the base model the parameters belong to.

    Example:
        >>> import tempfile, torch
        >>> from bayeslora import load_posterior, save_posterior
        >>> from bayeslora.posteriors.point import Point
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_posterior(Point({"layer.weight": torch.ones(2, 2)}), f"{folder}/posterior")
        ...     load_posterior(f"{folder}/posterior").mean()["layer.weight"].sum()
        tensor(4.)
    """
    with replacing_folder(directory) as folder:
        write_posterior(posterior, folder, adapter_config, base)


def load_posterior(directory: Path | str, base: str | None = None) -> Posterior:
    """Read a posterior back, bit for bit.

    Args:
        directory: Folder that :func:`save_posterior` wrote.
        base: Fingerprint of the base it will be used with; None does not check.

    Raises:
        UsageError: no posterior there, one that is damaged, of an unknown family, or of another base.

    Example:
        >>> from bayeslora import UsageError, load_posterior
        >>> try:
        ...     load_posterior("no such folder")
        ... except UsageError:
        ...     print("there is no posterior in it")
        there is no posterior in it
    """
    folder = Path(directory)
    record = _record(folder)
    if base is not None and record["base"] != base:
        raise UsageError(f"{folder} belongs to another base (fingerprint {record['base']}, given {base})")
    try:
        return _posterior(record, folder, base)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError, RuntimeError) as error:
        if isinstance(error, UsageError):
            raise
        raise UsageError(f"{folder / _RECORD} is damaged ({type(error).__name__}: {error}); {_REMEDY}") from error


def _posterior(record: dict[str, Any], folder: Path, base: str | None) -> Posterior:
    family: Any = _family(record["family"])
    state = {**record["values"], **_tensors(folder / _TENSORS)}
    if (folder / _ADAPTER).exists():
        state |= state_of("mean", _tensors(folder / _ADAPTER))
    if record["components"]:
        parts = [load_posterior(folder / part, base) for part in record["components"]]
        return family.from_components(parts, state)  # type: ignore[no-any-return]
    return family.from_state_dict(state)  # type: ignore[no-any-return]


def base_of(directory: Path | str) -> str:
    """The fingerprint of the base that a saved posterior belongs to; empty where it was saved without.

    Raises:
        UsageError: no posterior there, or one that is damaged.
    """
    return str(_record(Path(directory))["base"])


def check_files(directory: Path | str) -> None:
    """Check the files of a saved posterior against the checksums that were written with them; nothing elsewhere.

    Raises:
        UsageError: one is damaged or missing.
    """
    if (Path(directory) / _RECORD).is_file():
        _record(Path(directory))


def write_posterior(
    posterior: Posterior, folder: Path, adapter_config: Mapping[str, Any] | None = None, base: str = ""
) -> None:
    """Write a posterior's files into a folder that nobody reads yet, see :func:`save_posterior`.

    Args:
        posterior: The posterior.
        folder: The folder.
        adapter_config: peft's configuration as a dict; None for parameters that are not peft's.
        base: Fingerprint of the base model the parameters belong to.
    """
    folder.mkdir(parents=True, exist_ok=True)
    components = getattr(posterior, "components", [])
    names = [f"{index:03d}" for index in range(len(components))]
    for name, component in zip(names, components, strict=True):
        write_posterior(component, folder / name, adapter_config, base)
    state = posterior.state_dict()
    tensors = {key: value.contiguous() for key, value in state.items() if isinstance(value, Tensor)}
    values = {key: value for key, value in state.items() if not isinstance(value, Tensor)}
    if adapter_config is not None and not components:
        mean = {key.removeprefix(_MEAN): tensors.pop(key) for key in list(tensors) if key.startswith(_MEAN)}
        save_file(mean, folder / _ADAPTER, metadata={"format": "pt"})
        (folder / _CONFIG).write_text(json.dumps(dict(adapter_config), indent=2, sort_keys=True, default=_plain) + "\n")
    save_file(tensors, folder / _TENSORS)
    record = {"schema": SCHEMA, "family": posterior.family, "base": base, "components": names, "values": values}
    files = {name: file_checksum(folder / name) for name in _CHECKED if (folder / name).exists()}
    write_record(folder / _RECORD, {**record, "files": files})


def _plain(value: object) -> object:
    """Configurations of peft hold sets and enums."""
    return sorted(value) if isinstance(value, set | frozenset) else str(getattr(value, "value", value))


def _record(folder: Path) -> dict[str, Any]:
    if not (folder / _RECORD).exists():
        raise UsageError(f"{folder} holds no posterior ({_RECORD} is missing); give the posterior/ folder of a run")
    record = read_record(folder / _RECORD, _REMEDY)
    if record.get("schema") != SCHEMA or _family(record.get("family")) is None:
        given = f"schema {record.get('schema')}, family {record.get('family')}"
        raise UsageError(f"{folder} has {given}; this version reads schema {SCHEMA} and its own families: update it")
    lacking = [name for name in ("base", "components", "values") if name not in record]
    wrong = [name for name in record.get("components") or [] if not re.fullmatch(r"\d{3,}", str(name))]
    if lacking or wrong:
        what = f"it lacks {lacking[0]}" if lacking else f"component {wrong[0]!r} is none of its own folders"
        raise UsageError(f"{folder / _RECORD} is damaged ({what}); {_REMEDY}")
    for name, checksum in record.get("files", {}).items():
        if not (folder / name).is_file() or file_checksum(folder / name) != checksum:
            raise UsageError(f"{folder / name} is damaged or missing (it is not what was written there); {_REMEDY}")
    return record


def _family(name: object) -> type | None:
    """The class whose ``family`` is ``name``, which is also the name of its file here; None where there is none."""
    if re.fullmatch(r"[a-z]\w*", str(name)) is None:
        return None
    path = f"bayeslora.posteriors.{_ELSEWHERE.get(str(name), name)}"
    classes = vars(import_module(path)).values() if find_spec(path) is not None else ()
    return next((c for c in classes if isinstance(c, type) and getattr(c, "family", None) == name), None)


def _tensors(file: Path) -> dict[str, Tensor]:
    try:
        return load_file(file)
    except (SafetensorError, OSError) as error:
        raise UsageError(f"{file} is damaged or missing: {error}") from error


def check_same_parameters(given: Mapping[str, Tensor], wanted: Mapping[str, torch.Tensor], what: str) -> None:
    """Refuse parameters of other names or shapes.

    Args:
        given: The parameters to check.
        wanted: Parameters of the right names and shapes.
        what: What the message calls it.

    Raises:
        UsageError: naming the first difference.
    """
    for name in [*wanted, *given]:
        if name not in given or name not in wanted:
            side = "lacks" if name not in given else "has an unknown"
            raise UsageError(f"{what} {side} parameter {name}; it was made for another model or other LoRA targets")
        if given[name].shape != wanted[name].shape:
            shapes = f"{list(given[name].shape)}, the model's is {list(wanted[name].shape)}"
            raise UsageError(f"{what}'s {name} has shape {shapes}; give lora.r as it was in training")
