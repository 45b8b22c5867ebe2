"""The members of an ensemble on disk: a folder each, in plain peft format, with a mark that it is whole.

members/manifest.json     what all members have in common, and where each stands; rebuilt from the folders
members/003/              adapter_model.safetensors, adapter_config.json, posterior.*: member 3 as a point
members/003/member.json   its status, and what it is a function of
members/003/DONE          sha256 of every file, written last
members/leases/           who works on what
members/begun/            run folders of training that goes on
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bayeslora.errors import UsageError
from bayeslora.files import write_json
from bayeslora.posteriors.members.leases import Leases
from bayeslora.posteriors.mixture import Mixture
from bayeslora.posteriors.state import load_posterior, save_posterior
from bayeslora.types import Posterior

SCHEMA = 1
FOLDER = "members"
DONE, FAILED, DAMAGED = "done", "failed", "damaged"
_MARK, _RECORD, _MANIFEST = "DONE", "member.json", "manifest.json"


class MemberStore:
    """The members of one ensemble: what is done, what failed, and who works on the rest.

    A member is a function of what all members have in common (configuration, data, seed), which is their identity, and
    of its id. Ids are never given out again, and any subset that is done is an ensemble.

    Args:
        folder: Of the store.
        lease_seconds: Until a lease that is not renewed runs out.
    """

    def __init__(self, folder: Path | str, lease_seconds: float = 600.0) -> None:
        self.folder = Path(folder)
        self.leases = Leases(self.folder / "leases", lease_seconds)

    def path(self, member: int) -> Path:
        """Folder of a member."""
        return self.folder / f"{member:03d}"

    def members(self, status: str) -> tuple[int, ...]:
        """Ids of the members of a status.

        Args:
            status: ``done`` (every file is there and is the one that was written), ``failed``, or ``damaged`` (it was
                done, and its files are not those that were written). A member that is half written has none of these.
        """
        found = {int(path.name): path for path in self.folder.glob("[0-9]*") if path.name.isdigit()}
        return tuple(member for member, path in sorted(found.items()) if _status(path) == status)

    def claim(self, members: Sequence[int]) -> None:
        """Take the leases of the members.

        Raises:
            UsageError: another worker has one.
        """
        if not self.leases.claim(members):
            busy = {m: holder for m in members if (holder := self.leases.holder(m))}
            raise UsageError(f"other workers train members of {self.folder}: {busy}; wait, or give other members")

    def identify(self, identity: Mapping[str, Any], members: Sequence[int] | None = None) -> None:
        """Check that the store's members are of this identity; a new store takes it.

        Args:
            identity: What all members have in common, as plain values.
            members: Ids of members that are about to be trained further: a store with no others takes the identity.

        Raises:
            UsageError: they are not; names what differs.
        """
        own, given = self.identity(), json.loads(json.dumps(identity))
        others = {*self.members(DONE), *self.members(FAILED)} - set(members or [])
        if own is None or (members is not None and not others):
            write_json(self.folder / _MANIFEST, {"schema": SCHEMA, "identity": given, "members": {}})
            return
        differing = sorted(key for key in own.keys() | given.keys() if own.get(key) != given.get(key))
        if differing:
            changes = ", ".join(f"{key} (there {own.get(key)!r}, here {given.get(key)!r})" for key in differing)
            raise UsageError(f"{self.folder} holds members of another ensemble: {changes}; give another run folder")

    def identity(self) -> dict[str, Any] | None:
        """What all members have in common: of the manifest, or of any member where it is lost."""
        manifest = self.folder / _MANIFEST
        if manifest.exists():
            return json.loads(manifest.read_text())["identity"]  # type: ignore[no-any-return]
        records = sorted(self.folder.glob(f"[0-9]*/{_RECORD}"))
        return json.loads(records[0].read_text())["identity"] if records else None

    def write(
        self, member: int, posterior: Posterior, adapter_config: Mapping[str, Any], base: str, record: Mapping[str, Any]
    ) -> None:
        """Keep a finished member; what was there of it is replaced.

        Args:
            member: Its id.
            posterior: What training has found.
            adapter_config: peft's configuration as a dict.
            base: Fingerprint of the base model.
            record: What else to note in ``member.json``.

        Raises:
            RunError: the member's lease was lost to another worker.
        """
        self.leases.check()
        folder = self.path(member)
        (folder / _MARK).unlink(missing_ok=True)  # from here on it is half written, which is not damaged
        save_posterior(posterior, folder, adapter_config, base)
        self._note(member, {**record, "status": DONE})
        write_json(folder / _MARK, _checksums(folder))
        self._write_manifest()

    def fail(self, member: int, record: Mapping[str, Any]) -> None:
        """Note that a member failed, and why.

        Args:
            member: Id of the member.
            record: What is kept of the failure, as plain values.

        Raises:
            RunError: the member's lease was lost to another worker.
        """
        self.leases.check()
        self._note(member, {**record, "status": FAILED})
        self._write_manifest()

    def load(self, base: str | None = None) -> dict[int, Posterior]:
        """The members that are done, by their ids.

        Args:
            base: Fingerprint of the base they will be used with; None does not check.

        Raises:
            UsageError: none is done, one is damaged, or they belong to another base.
        """
        if damaged := self.members(DAMAGED):
            raise UsageError(
                f"members {', '.join(map(str, damaged))} of {self.folder} are damaged (their files are not what was "
                "written); train them again with `bayeslora ensemble`, or remove their folders to go on without them"
            )
        done = self.members(DONE)
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
        with self.leases.locked():
            done = self.load()
            first = self.path(next(iter(done)))
            adapter, point = (
                json.loads((first / name).read_text()) for name in ("adapter_config.json", "posterior.json")
            )
            save_posterior(Mixture(list(done.values())), directory, adapter, point["base"])  # type: ignore[arg-type]

    def _note(self, member: int, record: Mapping[str, Any]) -> None:
        write_json(self.path(member) / _RECORD, {"member": member, **record, "identity": self.identity()})

    def _write_manifest(self) -> None:
        write_json(self.folder / _MANIFEST, self.manifest())


def _status(folder: Path) -> str | None:
    """``done``, ``damaged``, ``failed``, or None for a member that is neither: absent or half written."""
    mark, record = folder / _MARK, folder / _RECORD
    if mark.exists():
        try:
            return DONE if json.loads(mark.read_text()) == _checksums(folder) else DAMAGED
        except ValueError:  # of bytes that are no text, or of text that is no JSON
            return DAMAGED
    failed = record.exists() and json.loads(record.read_text())["status"] == FAILED
    return FAILED if failed else None


def _checksums(folder: Path) -> dict[str, str]:
    """The sha256 of every file of a member but the mark and what a killed process left half written."""
    files = sorted(file for file in folder.iterdir() if file.name != _MARK and not file.name.startswith("."))
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}
