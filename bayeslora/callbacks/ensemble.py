"""Keeps the members of a LoRA ensemble in a store, so that runs can be continued, shared and added to."""

from __future__ import annotations

import math
import os
import socket
from dataclasses import asdict
from pathlib import Path
from typing import Any

import lightning as L

from bayeslora.errors import UsageError
from bayeslora.lightning_modules.ensemble import LoRAEnsemble
from bayeslora.lightning_modules.member_states import FAILED, STOPPED, TRAINING
from bayeslora.posteriors.members.store import DONE, FOLDER, MemberStore
from bayeslora.posteriors.point import Point

_NOT_THE_MEMBERS = (
    "members",
    "members_per_pass",
    "chunk",
    "optimisation",
    "_class_path",
    "_instantiator",
)  # hyper-parameters
_TRAINER = (
    "max_epochs",
    "max_steps",
    "precision",
    "gradient_clip_val",
    "gradient_clip_algorithm",
    "accumulate_grad_batches",
    "limit_train_batches",
    "val_check_interval",
    "check_val_every_n_epoch",
)


class Ensemble(L.Callback):
    """Fills the member store when fit ends, and keeps other processes from the members until then.

    Args:
        store: Folder of the store; None for ``<default_root_dir>/members``.
    """

    def __init__(self, store: Path | str | None = None) -> None:
        self.folder = store
        self.store: MemberStore | None = None

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Claim the members.

        A run that is continued in its own folder may be prolonged.

        Raises:
            UsageError: the module is no ensemble, the store is another ensemble's, or others train these members.
        """
        if not isinstance(pl_module, LoRAEnsemble):
            raise UsageError(f"Ensemble keeps members of a LoRAEnsemble, the model is a {type(pl_module).__name__}")
        self.store = MemberStore(self.folder or Path(trainer.default_root_dir) / FOLDER)
        prolonged = self.folder is None and trainer.ckpt_path is not None
        self.store.identify(identity(trainer, pl_module), pl_module.member_ids if prolonged else None)
        self.store.claim(pl_module.member_ids)

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Keep every member that has not failed, and note those that have."""
        assert isinstance(pl_module, LoRAEnsemble)  # on_fit_start has seen to it
        assert self.store is not None
        model = pl_module.model
        usable = pl_module.usable_members()
        written = self.store.members(DONE) if self.folder is not None else ()  # which a run of its own writes again
        for place, member in enumerate(pl_module.member_ids):
            if member in written:
                continue
            record = _record(trainer, pl_module, place)
            if place in usable:
                point = Point(pl_module.member_parameters(place))
                self.store.write(member, point, model.adapter_config, model.base_fingerprint, record)
            else:
                self.store.fail(member, record)
        self.store.locks.release()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Note members that failed, where that ended the run, and give the others back."""
        if self.store is None:
            return
        assert isinstance(pl_module, LoRAEnsemble)
        for place in pl_module.states.places(FAILED) if not pl_module.states.places(TRAINING, STOPPED) else ():
            self.store.fail(pl_module.member_ids[place], _record(trainer, pl_module, place))
        self.store.locks.release()


def _record(trainer: L.Trainer, pl_module: LoRAEnsemble, place: int) -> dict[str, Any]:
    """What ``member.json`` says about how a member's training went."""
    best, ended = pl_module.states.best_nll[place], pl_module.states.reason[place] or "trained to the end"
    where = {"host": socket.gethostname(), "process": os.getpid()}
    return {"ended": ended, "step": trainer.global_step, "best_val_nll": best if math.isfinite(best) else None, **where}


def identity(trainer: L.Trainer, pl_module: LoRAEnsemble) -> dict[str, Any]:
    """What a member is a function of besides its id, as plain values: model, data and training.

    Args:
        trainer: The trainer of the run.
        pl_module: The module that the trainer runs.
    """
    hparams = {**pl_module.hparams, **asdict(pl_module.optimisation)}  # flat, as stores of before have it
    model = {key: value for key, value in hparams.items() if key not in _NOT_THE_MEMBERS}
    datamodule = getattr(trainer, "datamodule", None)
    order: dict[str, Any] = datamodule.state_dict().get("order", {}) if datamodule is not None else {}
    data = {f"data.{key}": value for key, value in order.items() if key not in ("members", "processes")}
    run = {f"trainer.{key}": getattr(trainer, key) for key in _TRAINER}
    return {**_flat("model", model), "base": pl_module.model.base_fingerprint, **data, **run}


def _flat(prefix: str, values: dict[str, Any]) -> dict[str, Any]:
    """Nested dicts as one, with dots in the names; other than plain values as text."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat |= _flat(f"{prefix}.{key}", value)
        else:
            flat[f"{prefix}.{key}"] = value if isinstance(value, bool | int | float | str | list | None) else str(value)
    return flat
