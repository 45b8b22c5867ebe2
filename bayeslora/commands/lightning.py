"""LightningCLI with this package's defaults: run folder, checkpoints, precedence of configurations."""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, Literal

from jsonargparse import ActionYesNo
from lightning.fabric.plugins.environments import SLURMEnvironment
from lightning.pytorch import LightningDataModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import CSVLogger

import bayeslora.datamodules
import bayeslora.lightning_modules
from bayeslora.callbacks.ensemble import Ensemble
from bayeslora.callbacks.progress_line import ProgressLine
from bayeslora.callbacks.run_folder import AtomicCheckpointIO, RunFolder, holds_files, refuse_second_fit
from bayeslora.commands.arguments import configurations_first
from bayeslora.commands.checkpoints import LAST, checkpoint_config, members_beyond_checkpoint, resolve, resumes
from bayeslora.commands.class_list import classes_asked_for
from bayeslora.commands.folder_lock import folder_locks, lock_folder
from bayeslora.commands.gpu import gpu_precision, workspaces_as_chosen
from bayeslora.commands.old_names import current_names
from bayeslora.commands.run_callbacks import SaveStageConfig, SignalGate, log_folder, stage_callbacks
from bayeslora.commands.scheduler import leave_slurms_tasks, scheduler_plugins
from bayeslora.commands.trust import FLAG
from bayeslora.commands.wording import one_line_errors, quiet
from bayeslora.datamodules.protocols import get_protocol
from bayeslora.datamodules.protocols.own_file import is_file_name
from bayeslora.errors import UsageError
from bayeslora.lightning_modules.bare_base import BareBase
from bayeslora.lightning_modules.ensemble import LoRAEnsemble
from bayeslora.lightning_modules.multiple_choice import MultipleChoiceModule
from bayeslora.models.loading import Backbone
from bayeslora.posteriors.members.store import FOLDER

BASE = "base"  # as --ckpt_path: the base model without an adapter
AVAILABLE = "available"  # as --members: the members of a store that are whole
ADAPTER = "adapter"  # likewise: the adapter that --model.backbone.adapter names, also where it was trained further
_WRITTEN = {  # what a command leaves in the run folder that is named in the end; the report of a test names its own
    "fit": ("checkpoints/last.ckpt", "checkpoints/best.ckpt", "posterior"),
    "predict": ("predict/predictions.parquet",),
}
_SHARED = {"pretrained": "tokenizer", "revision": "revision", "readout": "readout"}  # of backbone, of data


for _name in bayeslora.datamodules.__all__:
    getattr(bayeslora.datamodules, _name)  # what is imported can be named without its path in a configuration


def run(args: list[str], command_line: type[CommandLine] | None = None) -> int:
    """Run ``fit``, ``test``, ``validate`` or ``predict`` with the given arguments; returns the exit status.

    Args:
        args: The command's arguments, the stage first.
        command_line: The class of the parser; None takes the package's own.
    """
    quiet()
    if (classes := classes_asked_for(args)) is not None:
        print(classes)
        return 0
    trusted = FLAG in args
    args = configurations_first([arg for arg in args if arg != FLAG])
    with folder_locks(), ExitStack() as files:
        extended = files.enter_context(checkpoint_config(args, trusted))
        current = files.enter_context(current_names(extended))
        files.enter_context(one_line_errors())
        line = (command_line or CommandLine)(
            model_class=MultipleChoiceModule,
            datamodule_class=LightningDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            auto_configure_optimizers=False,
            seed_everything_default=0,
            save_config_callback=SaveStageConfig,
            save_config_kwargs={"overwrite": True, "save_to_log_dir": False},
            trainer_defaults={
                "default_root_dir": "runs/default",
                "inference_mode": False,
                "use_distributed_sampler": False,
            },
            parser_kwargs={"exit_on_error": False},
            args=current,
        )
        line.say_what_was_written()
    return 0


class CommandLine(LightningCLI):
    """LightningCLI whose run folder, checkpoints and links are this package's."""

    subcommand: str
    store: Path | None = None  # of an ensemble's members; None for the run folder's

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the options of the run folder, and link what model, data and seed share."""
        parser.add_argument("--overwrite", action=ActionYesNo, default=False, help="Replace what the run folder holds.")
        parser.add_argument(
            "--save_every_n_steps",
            type=int | None,
            default=None,
            help="Write checkpoints/last.ckpt every so many optimiser steps instead of every epoch.",
        )
        parser.add_argument(
            "--members",
            type=Literal["all", "available"],
            default="all",
            help="What test and predict take of an ensemble's member store: all, so that a damaged one is an error, or "
            "those that are whole.",
        )
        for source, target in _SHARED.items():
            parser.link_arguments("model.init_args.backbone", f"data.init_args.{target}", partial(_field, name=source))
        parser.link_arguments("seed_everything", "model.init_args.seed")
        parser.link_arguments("seed_everything", "data.init_args.seed")

    def _parse_ckpt_path(self) -> None:
        """A checkpoint's hyper-parameters come before files and options, see ``checkpoint_config``: nothing to do.

        Lightning's own would put them after those, and it has no public switch.
        """

    def before_instantiate_classes(self) -> None:
        """Decide the run folder, and refuse what cannot run, before anything is loaded."""
        config = self.config[self.subcommand]
        keep_by_content(config.data)
        leave_slurms_tasks(config.trainer)
        self._root = run_folder(config.trainer)
        if SLURMEnvironment.detect() and (shadow := next(self._root.glob("hpc_ckpt_*"), None)):
            raise UsageError(
                f"{shadow} is a checkpoint of Lightning's requeueing under SLURM, which it would load in place of what "
                "is asked for; move it away, or go on from it in another folder with --ckpt_path"
            )
        if self.subcommand == "fit":
            if not leaves_nothing(config.trainer):
                lock_folder(self._root)
                refuse_second_fit(self._root, resumes(config.ckpt_path, self._root), config.overwrite)
            self._checkpoint = resolve(config.ckpt_path, self._root) if config.ckpt_path else None
            return
        stage_folder = self._root / self.subcommand
        if self.subcommand in ("test", "predict") and not leaves_nothing(config.trainer):
            lock_folder(self._root)
            if holds_files(stage_folder) and not config.overwrite:
                raise UsageError(f"{stage_folder} already holds results; add --overwrite, or give another run folder")
        self._checkpoint = self._checkpoint_to_test(config)

    def _checkpoint_to_test(self, config: Any) -> str | None:
        adapter, asked, last = _field(config.model.init_args.backbone, "adapter"), config.ckpt_path, self._root / LAST
        if asked == BASE:
            print("weights: the base model, without an adapter")
            return None
        if asked == ADAPTER or (asked is None and adapter and not last.exists()):
            if not adapter:
                raise UsageError("--ckpt_path adapter tests the adapter that --model.backbone.adapter names; give both")
            print(f"weights: the adapter in {adapter}")
            return None
        if asked is None and (members := members_beyond_checkpoint(self._root)):
            self.store = self._root / FOLDER
            print(f"members: {self.store}, {list(members)}")
            return None
        checkpoint = resolve(asked or "last", self._root)
        trained = f" (trained on from {adapter}, which --ckpt_path adapter tests)" if adapter and not asked else ""
        print(f"weights: {checkpoint}{trained}")
        return checkpoint

    def say_what_was_written(self) -> None:
        """One line, from one process, that names the run folder and what this command has put there."""
        found = [name for name in _WRITTEN.get(self.subcommand, ()) if (self._root / name).exists()]
        if found and self.trainer.is_global_zero and not leaves_nothing(self.config[self.subcommand].trainer):
            print(f"written to {self._root}: {', '.join(found)}")

    def instantiate_classes(self) -> None:
        """Build trainer, model and data; the bare base in the model's place where it is wanted."""
        super().instantiate_classes()
        if self.config[self.subcommand].ckpt_path == BASE:
            self.model = BareBase.of(self.model)
        elif self.subcommand != "fit":
            self.model.store = self.store
            self.model.available = self.config[self.subcommand].members == AVAILABLE

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """The trainer with the run folder's callbacks, a logger in it, and a GPU's own mixed precision on one."""
        config = self.config_init[self.subcommand].trainer
        trainer: dict[str, Any] = (
            {"callbacks": [*_bar(config), *(config.callbacks or [])]}
            if leaves_nothing(config)
            else self._what_a_run_keeps(config)
        )
        if config.precision is None and (precision := gpu_precision(config.accelerator)):
            trainer["precision"] = precision
        with workspaces_as_chosen():
            return super().instantiate_trainer(**kwargs, **trainer)

    def _what_a_run_keeps(self, config: Any) -> dict[str, Any]:
        """The trainer's options that fill the run folder: callbacks, the way checkpoints are written, a logger."""
        members = [Ensemble(self.store)] if self.subcommand == "fit" and isinstance(self.model, LoRAEnsemble) else []
        run = stage_callbacks(self.subcommand, self._root, self.config_init[self.subcommand])
        callbacks = [SignalGate(), *_bar(config), *(config.callbacks or []), *members, RunFolder(), *run]
        plugins = _as_list(config.plugins)
        plugins += [AtomicCheckpointIO(), *scheduler_plugins(plugins)]
        trainer: dict[str, Any] = {"callbacks": callbacks, "plugins": plugins}
        if config.logger in (None, True):
            trainer["logger"] = CSVLogger(self._root, name="logs", version=log_folder(self._root, self.subcommand))
        return trainer

    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        # The one place where Lightning lets a stage's own arguments be changed after the classes are made; a checkpoint
        # named `last` is resolved in the run folder by then.
        kwargs = {**super()._prepare_subcommand_kwargs(subcommand), "ckpt_path": self._checkpoint}
        own: dict[str, Any] = {
            "predict": {"return_predictions": False},  # the file holds them
            "test": {"verbose": False},  # the report's table says it all
        }
        return kwargs | own.get(subcommand, {})


def run_folder(trainer: Any) -> Path:
    """The run folder of a trainer's options: the one place that decides it, with ``~`` for the home folder."""
    folder = Path(trainer.default_root_dir).expanduser()
    trainer.default_root_dir = str(folder)
    return folder


def keep_by_content(data: Any) -> None:
    """Put what a protocol's file says in the place of its name, so that the saved configuration outlives the file."""
    given = data.init_args.get("protocol")
    if isinstance(given, str) and is_file_name(given):
        data.init_args["protocol"] = get_protocol(given).saved()


def leaves_nothing(trainer: Any) -> bool:
    """Whether a trainer's options ask for a trial that leaves no files, as Lightning's debugging options do."""
    return bool(trainer.fast_dev_run) or bool(trainer.barebones)


def _bar(trainer: Any) -> list[ProgressBar]:
    """The progress of a command, where neither another is asked for nor none."""
    own = any(isinstance(callback, ProgressBar) for callback in trainer.callbacks or [])
    return [] if own or trainer.barebones or trainer.enable_progress_bar is False else [ProgressLine()]


def _field(backbone: Any, name: str) -> Any:
    """A field of the backbone as the parser holds it: not given, a namespace, or the dataclass itself."""
    given = getattr(backbone, "init_args", backbone)
    return getattr(Backbone() if given is None else given, name)


def _as_list(value: Any) -> list[Any]:
    if value is None:
        return []
    return list(value) if isinstance(value, list | tuple) else [value]
