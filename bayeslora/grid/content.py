"""What a cell reads, by content: a base, a tokenizer and an adapter are known by what is in their files."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from bayeslora.files import file_checksum, write_json

_READ = ("*.safetensors", "*.bin", "*.json", "*.model", "*.txt", "*.jinja", "*.pt")


class Contents:
    """Checksums of folders, each file read once as long as nobody writes to it.

    Args:
        cache: File that keeps them between runs, by path, size, time and inode; it saves time and decides nothing.
    """

    def __init__(self, cache: Path) -> None:
        self.cache = cache
        self._known: dict[str, str] = self._read()
        self._folders: dict[str, str] = {}

    def folder(self, folder: Path) -> str:
        """A checksum of the files of a model, tokenizer or adapter: their names and their content."""
        digest = hashlib.sha256()
        files = {file for pattern in _READ for file in folder.glob(pattern) if file.is_file()}
        for file in sorted(files):
            digest.update(f"{file.name} {self._file(file)}\n".encode())
        return digest.hexdigest()[:16]

    def keep(self) -> None:
        """Write what is known to the cache."""
        write_json(self.cache, self._known)

    def _file(self, file: Path) -> str:
        stat = file.stat()
        key = f"{file.resolve()} {stat.st_size} {stat.st_mtime_ns} {stat.st_ino}"
        if key not in self._known:
            self._known[key] = file_checksum(file)
        return self._known[key]

    def _read(self) -> dict[str, str]:
        try:
            found: Any = json.loads(self.cache.read_text())
        except (OSError, ValueError):
            return {}  # not there, or damaged: files are read again
        return found if isinstance(found, dict) else {}
