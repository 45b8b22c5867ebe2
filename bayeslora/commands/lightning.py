"""LightningCLI with this package's defaults: run folder, checkpoints, precedence of configurations."""

from __future__ import annotations

import logging
import re
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
import yaml
from jsonargparse import ActionYesNo
from lightning.pytorch import LightningDataModule, Trainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.utilities.exceptions import MisconfigurationException

import bayeslora.datamodules
import bayeslora.lightning_modules
from bayeslora.callbacks.ensemble import Ensemble
from bayeslora.callbacks.predictions import Predictions
from bayeslora.callbacks.report import Report
from bayeslora.callbacks.run_folder import AtomicCheckpointIO, RunFolder, refuse_second_fit
from bayeslora.commands.old_names import current_names
from bayeslora.errors import UsageError
from bayeslora.lightning_modules.bare_base import BareBase
from bayeslora.lightning_modules.ensemble import LoRAEnsemble
from bayeslora.lightning_modules.multiple_choice import MultipleChoiceModule
from bayeslora.models.loading import Backbone
from bayeslora.posteriors.members.store import DONE, FOLDER, MemberStore

BASE = "base"  # as --ckpt_path: the base model without an adapter
_SHARED = {"pretrained": "tokenizer", "revision": "revision", "readout": "readout"}  # of backbone, of data


for _name in bayeslora.datamodules.__all__:
    getattr(bayeslora.datamodules, _name)  # what is imported can be named without its path in a configuration


def run(args: list[str], command_line: type[CommandLine] | None = None) -> int:
    """Run ``fit``, ``test``, ``validate`` or ``predict`` with the given arguments; returns the exit status."""
    _quiet()
    with _checkpoint_config(args) as extended, current_names(extended) as current, _one_line_errors():
        (command_line or CommandLine)(
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
    return 0


class SaveStageConfig(SaveConfigCallback):
    """Saves the configuration as ``<stage>-config.yaml`` in the run folder."""

    def save_config(self, trainer: Trainer, pl_module: Any, stage: str) -> None:
        """Write the file; the run folder's own check has passed by now."""
        file = Path(trainer.default_root_dir) / f"{_stage(trainer)}-config.yaml"
        file.parent.mkdir(parents=True, exist_ok=True)
        self.parser.save(self.config, str(file), skip_none=False, overwrite=True, multifile=False)


def _stage(trainer: Trainer) -> str:
    return str(getattr(trainer.state.fn, "value", trainer.state.fn))


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
        for source, target in _SHARED.items():
            parser.link_arguments("model.init_args.backbone", f"data.init_args.{target}", partial(_field, name=source))
        parser.link_arguments("seed_everything", "model.init_args.seed")
        parser.link_arguments("seed_everything", "data.init_args.seed")

    def _parse_ckpt_path(self) -> None:
        """A checkpoint's hyper-parameters come before files and options, see ``_checkpoint_config``: nothing to do."""

    def before_instantiate_classes(self) -> None:
        """Refuse what cannot run before anything is loaded."""
        config = self.config[self.subcommand]
        self._root = Path(config.trainer.default_root_dir)
        if self.subcommand == "fit":
            refuse_second_fit(self._root, config.ckpt_path is not None, config.overwrite)
            self._checkpoint = _resolve(config.ckpt_path, self._root) if config.ckpt_path else None
            return
        stage_folder = self._root / self.subcommand
        if self.subcommand in ("test", "predict") and stage_folder.exists() and not config.overwrite:
            raise UsageError(f"{stage_folder} already holds results; add --overwrite, or give another run folder")
        self._checkpoint = self._checkpoint_to_test(config)

    def _checkpoint_to_test(self, config: Any) -> str | None:
        adapter = config.model.init_args.backbone.adapter
        if config.ckpt_path == BASE or (config.ckpt_path is None and adapter):
            return None
        if config.ckpt_path is None and (members := _members_beyond_checkpoint(self._root)):
            self.store = self._root / FOLDER
            print(f"members: {self.store}, {list(members)}")
            return None
        checkpoint = _resolve(config.ckpt_path or "last", self._root)
        print(f"weights: {checkpoint}")
        return checkpoint

    def instantiate_classes(self) -> None:
        """Build trainer, model and data; the bare base in the model's place where it is wanted."""
        super().instantiate_classes()
        if self.config[self.subcommand].ckpt_path == BASE:
            self.model = BareBase.of(self.model)
        elif self.subcommand != "fit":
            self.model.store = self.store

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """The trainer with the run folder's callbacks, a logger in it, and bf16-mixed on a GPU."""
        config = self.config_init[self.subcommand]
        members = [Ensemble(self.store)] if self.subcommand == "fit" and isinstance(self.model, LoRAEnsemble) else []
        callbacks = [*members, RunFolder(), *_stage_callbacks(self.subcommand, self._root, config)]
        trainer: dict[str, Any] = {"callbacks": [*(config.trainer.callbacks or []), *callbacks]}
        trainer["plugins"] = [*_as_list(config.trainer.plugins), AtomicCheckpointIO()]
        if config.trainer.logger in (None, True):
            trainer["logger"] = CSVLogger(self._root, name="logs", version=_log_folder(self._root, self.subcommand))
        if config.trainer.precision is None and _on_gpu(config.trainer.accelerator):
            trainer["precision"] = "bf16-mixed"
        return super().instantiate_trainer(**kwargs, **trainer)

    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        kwargs = {**super()._prepare_subcommand_kwargs(subcommand), "ckpt_path": self._checkpoint}
        return kwargs | {"return_predictions": False} if subcommand == "predict" else kwargs  # the file holds them


class LastCheckpoint(ModelCheckpoint):
    """Keeps the newest state as ``last.ckpt``: every epoch or every so many steps, and when training ends."""

    def __init__(self, folder: Path, every_n_train_steps: int | None = None) -> None:
        super().__init__(
            folder,
            filename="last",
            every_n_train_steps=every_n_train_steps,
            enable_version_counter=False,
            save_on_train_epoch_end=None if every_n_train_steps else True,
        )

    def on_train_end(self, trainer: Trainer, pl_module: Any) -> None:
        """Save what the last period left unsaved."""
        if self._last_global_step_saved != trainer.global_step:
            self._save_none_monitor_checkpoint(trainer, self._monitor_candidates(trainer))


def _stage_callbacks(stage: str, root: Path, config: Any) -> list[Callback]:
    """What every run has; the checkpoint callbacks hold state of a checkpoint, so that every stage needs them."""
    folder = root / "checkpoints"
    best = ModelCheckpoint(folder, filename="best", monitor="val/nll", mode="min", enable_version_counter=False)
    callbacks: list[Callback] = [best, LastCheckpoint(folder, config.save_every_n_steps)]
    if stage in ("test", "predict"):
        callbacks.append(Predictions(overwrite=config.overwrite))
    return [*callbacks, Report()] if stage == "test" else callbacks


def _resolve(checkpoint: str, root: Path) -> str:
    """The file of ``last``, ``best`` or a path, checked to be whole."""
    path = root / "checkpoints" / f"{checkpoint}.ckpt" if checkpoint in ("last", "best") else Path(checkpoint)
    if not path.is_file():
        raise UsageError(
            f"there is no checkpoint {path}; run `bayeslora fit` into {root} first, or give --ckpt_path FILE, "
            "--ckpt_path base (the untrained base) or --model.backbone.adapter DIR (a peft adapter)"
        )
    _load(path)
    return str(path)


def _members_beyond_checkpoint(root: Path) -> tuple[int, ...]:
    """The members in a run folder's store, where its last checkpoint does not hold them all (with more beside them)."""
    done, last = MemberStore(root / FOLDER).members(DONE), root / "checkpoints" / "last.ckpt"
    if not done or not last.exists():
        return done
    held = _load(last).get("bayeslora", {}).get("members", {}).get("ids", [])
    return () if set(done) <= set(held) else done


def _load(path: Path) -> dict[str, Any]:
    try:
        return torch.load(path, weights_only=True, map_location="cpu", mmap=True)
    except Exception as error:  # torch raises half a dozen types here, all of which mean the same to a user
        reason = str(error).splitlines()[0]
        raise UsageError(f"{path} is damaged or no checkpoint of this package: {reason}") from error


@contextmanager
def _checkpoint_config(args: list[str]) -> Iterator[list[str]]:
    """Put a checkpoint's own configuration in front of the others, where everything given later beats it.

    Lightning would let the checkpoint beat the command line. Without any ``-c``, all of the run's configuration is
    taken (``fit-config.yaml``); with one, the checkpoint's model alone.
    """
    path = _option(args, "--ckpt_path")
    if path is None or not Path(path).is_file():
        yield args
        return
    saved = Path(path).resolve().parent.parent / "fit-config.yaml"
    given = any(arg in ("-c", "--config") or arg.startswith("--config=") for arg in args)
    if not given and saved.exists():
        config = yaml.safe_load(saved.read_text())
        config = {key: config[key] for key in ("seed_everything", "trainer", "model", "data")}
    else:
        config = _model_config(_load(Path(path)).get("hyper_parameters", {}))
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        yaml.safe_dump(config, file)
        file.flush()
        yield [args[0], "-c", file.name, *args[1:]]


def _model_config(hparams: dict[str, Any]) -> dict[str, Any]:
    class_path = hparams.get("_class_path")
    if class_path is None:
        return {}
    linked = {"seed", "_class_path", "_instantiator"}
    return {"model": {"class_path": class_path, "init_args": {k: v for k, v in hparams.items() if k not in linked}}}


def _field(backbone: Any, name: str) -> Any:
    """A field of the backbone as the parser holds it: not given, a namespace, or the dataclass itself."""
    given = getattr(backbone, "init_args", backbone)
    return getattr(Backbone() if given is None else given, name)


@contextmanager
def _one_line_errors() -> Iterator[None]:
    """Parser errors and Lightning's refusals as this package's own kind."""
    from jsonargparse import ArgumentError

    try:
        yield
    except UsageError:
        raise
    except (ArgumentError, ValueError, MisconfigurationException) as error:
        own = _own_cause(error)
        if own is None and not isinstance(error, ArgumentError | MisconfigurationException):
            raise
        raise own or UsageError(_condense(str(error))) from error


def _own_cause(error: BaseException) -> UsageError | None:
    """The refusal that a parser's error wraps: jsonargparse raises its own for whatever a class raises."""
    while (cause := error.__cause__ or error.__context__) is not None:
        if isinstance(cause, UsageError):
            return cause
        error = cause
    return None


def _condense(message: str) -> str:
    """What went wrong in one line, from a message that jsonargparse spreads over many, or from Lightning's."""
    text = " ".join(message.split())
    if unknown := re.search(r"Expected a dot import path string: (\S+)", text):
        names = [name for name in bayeslora.datamodules.__all__ if name.endswith("DataModule")]
        names = names if 'key "data"' in text else bayeslora.lightning_modules.__all__
        return f"there is no class {unknown[1]}; allowed: {', '.join(names)}, or the import path of your own"
    if option := re.search(r"Problem with given class_path '([^']+)': Option '([^']+)' is not accepted", text):
        name = option[1].rpartition(".")[2]
        return f"{name} has no option {option[2]!r}; --model.help {name} or --data.help {name} lists them"
    if expected := re.findall(r'Parser key "([^"]+)": Expected a (.+?)\. Got value: (\S+)', text):
        key, kind, value = expected[-1]
        kind = kind.removeprefix("<class '").removesuffix("'>")
        return f"{key} is {value}; allowed: {kind}"
    if "backend found" in text:
        return f"{text.rstrip('!')} on this machine; give --trainer.accelerator cpu, or run where there is one"
    return text


def _option(args: list[str], name: str) -> str | None:
    for index, arg in enumerate(args):
        if arg == name and index + 1 < len(args):
            return args[index + 1]
        if arg.startswith(f"{name}="):
            return arg.partition("=")[2]
    return None


def _as_list(value: Any) -> list[Any]:
    if value is None:
        return []
    return list(value) if isinstance(value, list | tuple) else [value]


def _log_folder(root: Path, stage: str) -> str:
    """A folder of its own for every run of a stage: Lightning's CSV logger empties the one it is given."""
    taken = 1
    name = stage
    while (root / "logs" / name).exists():
        taken += 1
        name = f"{stage}-{taken}"
    return name


def _on_gpu(accelerator: Any) -> bool:
    return torch.cuda.is_available() and accelerator in ("auto", "gpu", "cuda")


def _quiet() -> None:
    """Leave the terminal to the run: no loading bars and advertisements of the libraries."""
    import transformers

    warnings.filterwarnings("ignore", message="LightningCLI's args parameter")
    warnings.filterwarnings("ignore", message=".*treespec, LeafSpec.*is deprecated")
    warnings.filterwarnings("ignore", message=".*does not have many workers")
    warnings.filterwarnings("ignore", message="Using ModelCheckpoint with manual optimization")
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    logging.getLogger("lightning.pytorch.utilities.rank_zero").setLevel(logging.WARNING)
