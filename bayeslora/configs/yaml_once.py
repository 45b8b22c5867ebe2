"""YAML whose mappings have every key once: the last of two would win without a word."""

from __future__ import annotations

from typing import Any

import yaml

from bayeslora.errors import UsageError


class KeysOnce(yaml.constructor.BaseConstructor):
    """What a loader takes on to refuse a key that is there twice."""

    name: str  # of the file, as a loader's reader has it

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        """A mapping; a key that is there already is an error that names it."""
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        twice = next((key for place, key in enumerate(keys) if key in keys[:place]), None)
        if twice is not None:
            line = node.start_mark.line + 1
            raise UsageError(f"{self.name}, line {line}: the key {twice!r} is there twice; keep one")
        return super().construct_mapping(node, deep)


class OnceLoader(KeysOnce, yaml.SafeLoader):
    """Reads plain YAML whose mappings have every key once."""
