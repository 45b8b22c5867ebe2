"""The configuration of a run in its folder, with a checksum: a digit that has changed would change numbers."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from bayeslora.commands.trust import read_config
from bayeslora.errors import UsageError
from bayeslora.files import replacing

_MARK = b"# sha256 of the lines below: "


def seal(file: Path, text: bytes) -> None:
    """Write a configuration below a comment with its checksum, whole or not at all.

    Args:
        file: The file to write.
        text: The configuration as YAML.
    """
    with replacing(file) as temporary:
        temporary.write_bytes(_MARK + hashlib.sha256(text).hexdigest().encode() + b"\n" + text)


def read_sealed(file: Path) -> dict[str, Any]:
    """A configuration that :func:`seal` wrote; one without a checksum, of an earlier version, is taken as it is.

    Raises:
        UsageError: it is not what was written, or no configuration.
    """
    try:
        first, _, rest = file.read_bytes().partition(b"\n")
    except OSError as error:
        raise UsageError(f"{file} cannot be read ({error.strerror}); give the configuration with -c") from error
    if first.startswith(_MARK[:8]) and first != _MARK + hashlib.sha256(rest).hexdigest().encode():
        raise UsageError(f"{file} is damaged or was changed (it is not what was written there); give it with -c")
    return read_config(file)
