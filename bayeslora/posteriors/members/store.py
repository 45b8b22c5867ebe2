"""The members of an ensemble on disk: a folder each, in plain peft format, with a mark that it is whole.

members/manifest.json     what all members have in common, and where each stands; rebuilt from the folders
members/003/              adapter_model.safetensors, adapter_config.json, posterior.*: member 3 as a point
members/003/member.json   its status, and what it is a function of
members/003/DONE          sha256 of every other file
members/leases/           who works on what
members/begun/            run folders of training that goes on
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bayeslora.errors import UsageError, require
from bayeslora.files import clear_leftovers_of, file_checksum, read_record, replacing_folder, write_json, write_record
from bayeslora.posteriors.members.locks import MemberLocks
from bayeslora.posteriors.mixture import Mixture
from bayeslora.posteriors.state import load_posterior, save_posterior, write_posterior
from bayeslora.types import Posterior

SCHEMA = 1
FOLDER = "members"
DONE, FAILED, DAMAGED = "done", "failed", "damaged"
_MARK, _RECORD, _MANIFEST = "DONE", "member.json", "manifest.json"
_MANIFEST_REMEDY = "remove it: it is made again from the members' folders"
_RECORD_REMEDY = "remove its folder: `bayeslora ensemble` trains the member again"


def ids_of(members: int | Sequence[int]) -> list[int]:
    """Ids of members: the first so many, or those that are listed.

    Args:
        members: How many, or which.

    Raises:
        UsageError: none at all, one that is there twice, or one below 0.
    """
    ids = list(range(members)) if isinstance(members, int) else list(members)
    holds = bool(ids) and min(ids) >= 0 and len({*ids}) == len(ids)
    require("members", members, holds, "a number above 0, or distinct ids of 0 and above")
    return ids


class MemberStore:
    """The members of one ensemble: what is done, what failed, and who works on the rest.

    A member is a function of what all members have in common (configuration, data, seed), which is their identity, and
    of its id. Ids are never given out again, and any subset that is done is an ensemble. A member's folder appears
    whole or not at all. Where locks do not reach (a network file system may not carry them from machine to machine) two
    processes can train the same member: the first one's stands, and the second one's is left.

    Args:
        folder: Of the store.
    """

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)
        self.locks = MemberLocks(self.folder / "leases")
        self._found: dict[int, bytes | None] = {}  # the mark that a member had when it was claimed

    def path(self, member: int) -> Path:
        """Folder of a member."""
        return self.folder / f"{member:03d}"

    def members(self, status: str) -> tuple[int, ...]:
        """Ids of the members of a status.

        Args:
            status: ``done`` (every file is there and is the one that was written), ``failed``, or ``damaged`` (its
                files are not those that were written). A member that is half written has none of these.
        """
        found = {int(path.name): path for path in self.folder.glob("[0-9]*") if path.name.isdigit()}
        return tuple(member for member, path in sorted(found.items()) if _status(path) == status)

    def status(self, member: int) -> str | None:
        """The status of one member, see :meth:`members`; None where it is absent or half written."""
        return _status(self.path(member))

    def claim(self, members: Sequence[int]) -> None:
        """Take the members, and clear away what a killed process of this machine left of them.

        Raises:
            UsageError: another process has one, or the file system has no locks.
        """
        if not self.locks.claim(members):
            busy = {m: holder for m in members if (holder := self.locks.holder(m))}
            raise UsageError(f"other workers train members of {self.folder}: {busy}; wait, or give other members")
        with self.locks.exclusive():
            clear_leftovers_of(self.folder / _MANIFEST)
        for member in members:
            clear_leftovers_of(self.path(member))
            self._found[member] = self._mark(member)

    def identify(self, identity: Mapping[str, Any], members: Sequence[int] | None = None) -> None:
        """Check that the store's members are of this identity; a new store takes it.

        Args:
            identity: What all members have in common, as plain values.
            members: Ids of members that are about to be trained further: a store with no others takes the identity.

        Raises:
            UsageError: they are not; names what differs.
        """
        given = json.loads(json.dumps(identity))
        with self.locks.exclusive():
            own = self.identity()
            others = {*self.members(DONE), *self.members(FAILED)} - set(members or [])
            if own is None or (members is not None and not others):
                write_record(self.folder / _MANIFEST, {"schema": SCHEMA, "identity": given, "members": {}})
                return
        differing = sorted(key for key in own.keys() | given.keys() if own.get(key) != given.get(key))
        if differing:
            changes = ", ".join(f"{key} (there {own.get(key)!r}, here {given.get(key)!r})" for key in differing)
            raise UsageError(f"{self.folder} holds members of another ensemble: {changes}; give another run folder")

    def identity(self) -> dict[str, Any] | None:
        """What all members have in common: of the manifest, or of any whole member where it is lost.

        Raises:
            UsageError: the manifest is damaged.
        """
        manifest = self.folder / _MANIFEST
        if manifest.exists():
            return _identity(manifest, _MANIFEST_REMEDY)
        whole = (*self.members(DONE), *self.members(FAILED))
        return _identity(self.path(whole[0]) / _RECORD, _RECORD_REMEDY) if whole else None

    def record(self, member: int) -> dict[str, Any]:
        """What ``member.json`` says of a member that is done or has failed."""
        return read_record(self.path(member) / _RECORD, _RECORD_REMEDY)

    def write(
        self, member: int, posterior: Posterior, adapter_config: Mapping[str, Any], base: str, record: Mapping[str, Any]
    ) -> None:
        """Keep a finished member that was claimed; what was there of it then is replaced.

        One that another process has finished since then stands, and a warning says so.

        Args:
            member: Its id.
            posterior: What training has found.
            adapter_config: peft's configuration as a dict.
            base: Fingerprint of the base model.
            record: What else to note in ``member.json``.
        """
        if self._superseded(member):
            return
        with replacing_folder(self.path(member)) as folder:
            write_posterior(posterior, folder, adapter_config, base)
            self._note(folder, member, {**record, "status": DONE})
            write_json(folder / _MARK, _checksums(folder))
        self._found[member] = self._mark(member)
        self._write_manifest()

    def fail(self, member: int, record: Mapping[str, Any]) -> None:
        """Note that a member that was claimed has failed, and why; see :meth:`write`.

        Args:
            member: Id of the member.
            record: What is kept of the failure, as plain values.
        """
        if self._superseded(member):
            return
        with replacing_folder(self.path(member)) as folder:
            self._note(folder, member, {**record, "status": FAILED})
        self._write_manifest()

    def load(self, base: str | None = None, available: bool = False) -> dict[int, Posterior]:
        """The members that are done, by their ids.

        Args:
            base: Fingerprint of the base they will be used with; None does not check.
            available: Leave out members that are damaged, instead of refusing them.

        Raises:
            UsageError: none is done, one is damaged, or they belong to another base.
        """
        damaged, done = self.members(DAMAGED), self.members(DONE)
        if damaged and not (available and done):
            raise UsageError(
                f"members {', '.join(map(str, damaged))} of {self.folder} are damaged (their files are not what was "
                "written); train them again with `bayeslora ensemble`, or go on without them: `bayeslora test "
                "--members available`"
            )
        if not done:
            raise UsageError(
                f"{self.folder} holds no finished member; run `bayeslora ensemble` or `bayeslora fit` first"
            )
        return {member: load_posterior(self.path(member), base) for member in done}

    def manifest(self) -> dict[str, Any]:
        """What ``manifest.json`` should hold, from the members' folders."""
        status = {f"{m:03d}": kind for kind in (DONE, FAILED) for m in self.members(kind)}
        return {"schema": SCHEMA, "identity": self.identity(), "members": dict(sorted(status.items()))}

    def assemble(self, directory: Path | str) -> None:
        """Write the members that are done as one posterior, a mixture of points."""
        with self.locks.exclusive():
            done = self.load()
            first = self.path(next(iter(done)))
            adapter, point = (
                json.loads((first / name).read_text()) for name in ("adapter_config.json", "posterior.json")
            )
            save_posterior(Mixture(list(done.values())), directory, adapter, point["base"])  # type: ignore[arg-type]

    def _superseded(self, member: int) -> bool:
        """Whether another process has finished a member since it was claimed here."""
        now = self._mark(member)
        if now is None or now == self._found.get(member):
            return False
        warnings.warn(f"another process has finished member {member} of {self.folder}; its result stands", stacklevel=3)
        return True

    def _mark(self, member: int) -> bytes | None:
        mark = self.path(member) / _MARK
        return mark.read_bytes() if mark.exists() else None

    def _note(self, folder: Path, member: int, record: Mapping[str, Any]) -> None:
        write_record(folder / _RECORD, {"member": member, **record, "identity": self.identity()})

    def _write_manifest(self) -> None:
        with self.locks.exclusive():
            write_record(self.folder / _MANIFEST, self.manifest())


def _identity(file: Path, remedy: str) -> dict[str, Any]:
    """The identity that a manifest or a member's record holds."""
    identity = read_record(file, remedy).get("identity")
    if not isinstance(identity, dict):
        raise UsageError(f"{file} is damaged (it does not say whose members these are); {remedy}")
    return identity


def _status(folder: Path) -> str | None:
    """``done``, ``damaged``, ``failed``, or None for a member that is neither: absent or half written."""
    mark, record = folder / _MARK, folder / _RECORD
    try:
        if mark.exists():
            return DONE if json.loads(mark.read_text()) == _checksums(folder) else DAMAGED
        failed = record.exists() and read_record(record, _RECORD_REMEDY).get("status") == FAILED
    except ValueError:  # of bytes that are no text, of text that is no JSON, or of a record that was changed
        return DAMAGED
    return FAILED if failed else None


def _checksums(folder: Path) -> dict[str, str]:
    """The sha256 of every file of a member but the mark and what a killed process left half written."""
    files = sorted(file for file in folder.iterdir() if file.name != _MARK and not file.name.startswith("."))
    return {file.name: file_checksum(file) for file in files}
