"""The protocol that is meant: by name, by file, by content."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any

from bayeslora.datamodules.protocols.base import PROTOCOLS, Protocol
from bayeslora.datamodules.protocols.own import OwnProtocol
from bayeslora.datamodules.protocols.own_file import is_file_name, read_protocol
from bayeslora.errors import require


def get_protocol(given: str | Mapping[str, Any] | Protocol) -> Protocol:
    """A protocol by its name, from a YAML file, from plain values, or as it is.

    Args:
        given: One of ``PROTOCOLS``, the name of a file (``my.yaml``), what :meth:`Protocol.saved` gave, or a protocol.

    Raises:
        UsageError: a name that is none of them, or what is wrong with a protocol of one's own.
    """
    if isinstance(given, Protocol):
        return given
    if isinstance(given, Mapping):
        return OwnProtocol.from_dict(given)
    if isinstance(given, str) and is_file_name(given):
        return OwnProtocol.from_dict(read_protocol(given))
    known = isinstance(given, str) and given in PROTOCOLS
    require("protocol", given, known, f"{', '.join(PROTOCOLS)}, or a YAML file with one's own (my.yaml)")
    module = import_module(f"bayeslora.datamodules.protocols.{given}")
    return getattr(module, PROTOCOLS[given])()  # type: ignore[no-any-return]
