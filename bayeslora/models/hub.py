"""Folders on the Hugging Face hub: an adapter, or a run, by its id as well as by its place on the disk."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from bayeslora.errors import UsageError
from bayeslora.models.pretrained import ADAPTER_CONFIG

# Tensors and JSON alone: what comes from a hub may be anybody's, and reading a pickle is running it.
ADAPTER_FILES = (ADAPTER_CONFIG, "adapter_model.safetensors", "posterior.json", "posterior.safetensors")
_ID = re.compile(r"(?P<repo>\w[\w.-]*/\w[\w.-]*)(@(?P<revision>[\w./-]+))?", re.ASCII)


def adapter_folder(name: str) -> Path:
    """The folder of a peft adapter.

    Args:
        name: A local folder; or the id of a repository on the hub, ``owner/name`` or ``owner/name@revision``. A folder
            of that name is taken first.

    Raises:
        UsageError: neither; or a repository whose weights are not kept as safetensors.
    """
    if Path(name).is_dir() or _ID.fullmatch(name) is None:
        return Path(name)
    folder = snapshot(name, ADAPTER_FILES, "adapter")
    for file in ADAPTER_FILES[:2]:
        if not (folder / file).is_file():
            raise UsageError(f"the adapter {name} on the hub has no {file}; allowed: LoRA adapters with safetensors")
    return folder


def is_hub_id(name: str) -> bool:
    """Whether a name is written as the id of a model on the hub, old ones without an owner included, and is no file."""
    return re.fullmatch(r"(\w[\w.-]*/)?\w[\w.-]*", name, re.ASCII) is not None and not Path(name).exists()


def snapshot(
    name: str,
    files: Sequence[str],
    what: str,
    *,
    token: str | None = None,
    cache_dir: Path | str | None = None,
    local_files_only: bool = False,
) -> Path:
    """The folder in the local cache that holds a repository's files, downloaded where they are not there yet.

    Args:
        name: ``owner/name`` or ``owner/name@revision``.
        files: Names of the files that are wanted, or patterns; no others are downloaded.
        what: What it is, for messages.
        token: For private repositories; None takes the one that was logged in with.
        cache_dir: The cache; None takes the hub's own.
        local_files_only: Whether to look into the cache alone.

    Raises:
        UsageError: a name that is none, or nothing there.
    """
    from huggingface_hub import snapshot_download

    found = _ID.fullmatch(name)
    if found is None:
        raise UsageError(f"{name!r} is no id of the hub; allowed: owner/name, or owner/name@revision")
    try:
        folder = snapshot_download(
            found["repo"],
            revision=found["revision"],
            allow_patterns=list(files),
            token=token,
            cache_dir=cache_dir,
            local_files_only=local_files_only,
        )
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UsageError(
            f"{name} is no folder, and the {what} {name} is neither in the local cache nor on the hub ({reason}); "
            "give a folder, or download it once with network"
        ) from error
    return Path(folder)
