"""A protocol in a file of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from bayeslora.configs.yaml_once import KeysOnce
from bayeslora.errors import UsageError

ENDINGS = (".yaml", ".yml", ".json")
_MAY_BE_NONE, _NONE = ("option", "end", "normalise"), ("null", "Null", "NULL", "~")


class _Texts(KeysOnce, yaml.BaseLoader):
    """Reads YAML whose every value is text, so that ``yes`` and ``no`` are words, and whose keys stand once."""


def is_file_name(name: str) -> bool:
    """Whether a protocol's name is the name of a file."""
    return name.endswith(ENDINGS)


def read_protocol(file: str | Path) -> dict[str, Any]:
    """What a protocol's file says, as :meth:`OwnProtocol.from_dict` takes it.

    Args:
        file: A YAML or JSON file. Every value in it is taken as text, ``yes`` and ``no`` too, but ``max_length`` and a
            ``null`` in the place of what may be left out.

    Raises:
        UsageError: the file is not there, or is no such file.
    """
    path = Path(file).expanduser()
    try:
        with path.open(encoding="utf-8") as stream:
            found = yaml.load(stream, _Texts)
    except OSError as error:
        raise UsageError(f"protocol {file} cannot be read ({error.strerror}); give a YAML file, or a name") from error
    except UnicodeDecodeError:
        raise UsageError(f"protocol {file} is not in UTF-8; save it as UTF-8 text") from None
    except yaml.YAMLError as error:
        raise UsageError(f"protocol {file} is no valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(found, dict):
        raise UsageError(f"protocol {file} holds no keys; give it a template, with {{question}} in it")
    found = {key: None if key in _MAY_BE_NONE and value in _NONE else value for key, value in found.items()}
    length = found.get("max_length")
    return {**found, "max_length": int(length)} if isinstance(length, str) and length.isdecimal() else found
