"""The run folder: what a run leaves behind, and what it may not overwrite."""

from __future__ import annotations

import platform
import shutil
import subprocess
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning.pytorch.utilities import rank_zero_warn

from bayeslora import __version__
from bayeslora.errors import UsageError
from bayeslora.files import RUN_FILE, replacing, run_record, write_record
from bayeslora.lightning_modules.multiple_choice import MultipleChoiceModule
from bayeslora.models.noise import KEYED_BY
from bayeslora.posteriors.state import save_posterior

SCHEMA = 1
_RESULTS = ("checkpoints", "members", "posterior", "test", "predict", "dynamics")
_PACKAGES = ("torch", "lightning", "transformers", "peft", "bitsandbytes", "torchmetrics", "datasets")


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint beside its place, flushes it, then renames it: a killed run leaves the previous one."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Write ``checkpoint`` to the local file ``path``."""
        with replacing(path) as temporary:
            torch.save(checkpoint, temporary)


class RunFolder(L.Callback):
    """Writes ``run.json`` and, when fit ends, ``posterior/``, whose mean is an adapter in plain peft format.

    Of a module of another package ``posterior/`` is what a callback has fitted, with the module's own names.

    ``run.json`` holds the schema, package versions, commit, seed, base fingerprint and revision, data fingerprint,
    label budget, what noise is drawn by, hardware, number of trainable parameters, seconds spent in fit and in test,
    and peak memory. A trial (``fast_dev_run``) leaves the folder as it is.

    Example:
        >>> import lightning as L
        >>> from bayeslora import RunFolder, SWAG
        >>> trainer = L.Trainer(callbacks=[SWAG(), RunFolder()], logger=False, accelerator="cpu")
    """

    def __init__(self) -> None:
        self._started, self._trained = 0.0, False

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Note what is about to run."""
        self._start(trainer)
        _say_if_other_noise(trainer)
        self._note(trainer, {**_environment(), **_identity(trainer, pl_module)})

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Note that there was something to train."""
        self._trained = True

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Note what it cost; save the posterior that a callback holds, or the module's own."""
        if not self._trained:
            rank_zero_warn(
                f"nothing was left to train: the run has had its {trainer.max_epochs} epochs or {trainer.max_steps} "
                "steps; raise max_epochs or max_steps (--trainer.max_epochs) to train on"
            )
        spent = run_record(Path(trainer.default_root_dir)).get("train_seconds", 0.0) + time.monotonic() - self._started
        self._note(trainer, {"train_seconds": round(spent, 3), "peak_bytes": _peak_bytes(trainer)})
        if keeps(trainer):
            _save(trainer, pl_module)

    def on_test_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the clock; note the run where nothing was trained in this folder."""
        self._start(trainer)
        _say_if_other_noise(trainer)
        if not run_record(Path(trainer.default_root_dir)):
            self._note(trainer, {**_environment(), **_identity(trainer, pl_module)})

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Note what prediction cost."""
        seconds = round(time.monotonic() - self._started, 3)
        method = getattr(pl_module, "method", type(pl_module).__name__)
        self._note(
            trainer,
            {"predict_seconds": seconds, "predict_peak_bytes": _peak_bytes(trainer)} | {"method": method},
        )

    def _start(self, trainer: L.Trainer) -> None:
        self._started = time.monotonic()
        if trainer.strategy.root_device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(trainer.strategy.root_device)

    def _note(self, trainer: L.Trainer, values: dict[str, Any]) -> None:
        if keeps(trainer):
            root = Path(trainer.default_root_dir)
            write_record(root / RUN_FILE, {"schema": SCHEMA, **run_record(root), **values})


def keeps(trainer: L.Trainer) -> bool:
    """Whether this process writes into the run folder: the first one does, unless the run is a trial."""
    return trainer.is_global_zero and not trainer.fast_dev_run  # type: ignore[attr-defined]


def _save(trainer: L.Trainer, pl_module: L.LightningModule) -> None:
    """The posterior that a callback holds, or that of a module of this package."""
    folder = Path(trainer.default_root_dir) / "posterior"
    found = (getattr(callback, "posterior", None) for callback in trainer.callbacks)  # type: ignore[attr-defined]
    posterior = next(filter(None, found), None)
    if isinstance(pl_module, MultipleChoiceModule):
        model = pl_module.model
        save_posterior(posterior or pl_module.posterior(), folder, model.adapter_config, model.base_fingerprint)
    elif posterior is not None:
        save_posterior(posterior, folder)


def refuse_second_fit(root: Path, resuming: bool, overwrite: bool) -> None:
    """Refuse to train in a folder that holds a run, or clear it if asked to.

    Args:
        root: The run folder.
        resuming: Whether a checkpoint continues the run that is there.
        overwrite: Whether the user allows its removal.

    Raises:
        UsageError: the folder holds a run, which is neither continued nor given up.
    """
    found = [path for name in _RESULTS if holds_files(path := root / name)]
    if not found or resuming:
        return
    if not overwrite:
        saved = next((name for name in ("last", "best") if (root / "checkpoints" / f"{name}.ckpt").exists()), None)
        on = f"continue it with --ckpt_path {saved}, " if saved else ""
        raise UsageError(
            f"{root} already holds a run; {on}give another --trainer.default_root_dir, or start over with --overwrite"
        )
    for path in found:
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def holds_files(path: Path) -> bool:
    """Whether there is a file, or a folder with any in it; a process that is killed leaves empty ones."""
    return path.is_file() or any(inner.is_file() for inner in path.rglob("*"))


def _say_if_other_noise(trainer: L.Trainer) -> None:
    """Say so where a run was made with noise that depended on where a question stood."""
    record = run_record(Path(trainer.default_root_dir))
    if record and "noise" not in record:
        rank_zero_warn(
            "this run was made when noise was drawn by a question's dataset and row; it is now drawn by its tokens. "
            "What is computed with noise (dropout, C-LoRA, flipout) differs from before as another draw does"
        )


def _identity(trainer: L.Trainer, pl_module: L.LightningModule) -> dict[str, Any]:
    datamodule = trainer.datamodule  # type: ignore[attr-defined]
    backbone, model = getattr(pl_module, "backbone", None), getattr(pl_module, "model", None)
    report: dict[str, Any] = datamodule.report() if hasattr(datamodule, "report") else {}
    return {
        "method": getattr(pl_module, "method", type(pl_module).__name__),
        "seed": getattr(pl_module, "seed", None),
        "base": getattr(backbone, "pretrained", None),
        "base_revision": getattr(getattr(getattr(model, "network", None), "config", None), "_commit_hash", None),
        "base_fingerprint": getattr(model, "base_fingerprint", None),
        "data_fingerprint": getattr(datamodule, "fingerprint", None),
        "noise": KEYED_BY,
        "data": report,
        "labels": sum(report.get(key) or 0 for key in ("n_train", "n_val", "n_calibration")) or None,
        "trainable_parameters": sum(p.numel() for p in pl_module.parameters() if p.requires_grad),
    }


def _environment() -> dict[str, Any]:
    versions = {"bayeslora": __version__} | {name: _version(name) for name in _PACKAGES}
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or platform.machine()
    hardware = {"device": device, "threads": torch.get_num_threads(), "python": platform.python_version()}
    return {"versions": versions, "hardware": hardware, "commit": _commit()}


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None  # not installed: quantisation and hub data sets can be done without


def _commit() -> str | None:
    """The commit of the code, where the package runs from a git checkout."""
    folder = Path(__file__).parent
    command = ["git", "-C", str(folder), "describe", "--always", "--dirty"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None  # installed as a package: the version says which code ran


def _peak_bytes(trainer: L.Trainer) -> int | None:
    """Most memory held so far: of the GPU's allocator, or resident in the process where the system tells it.

    The device is the strategy's: when fit ends, the module is back on the CPU.
    """
    device = trainer.strategy.root_device
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")), None)
