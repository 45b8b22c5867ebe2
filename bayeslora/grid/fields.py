"""What every field of a configuration means to a cell's fingerprint: in, out, or refused in a grid."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from bayeslora.errors import require

IN, OUT = "in", "out"

# Out: it says where things lie or are written, is known by content instead, or only watches.
_OUT = {
    "": "config seed_everything overwrite save_every_n_steps verbose weights_only ckpt_path",
    "trainer": (
        "accelerator logger default_root_dir enable_progress_bar enable_model_summary enable_checkpointing profiler "
        "log_every_n_steps detect_anomaly enable_autolog_hparams model_registry use_distributed_sampler "
        "limit_predict_batches"
    ),
    "model.backbone": "pretrained revision adapter",  # by content
    "model": "seed",  # the cell's, which stands beside
    "data": "data_dir path protocol tokenizer revision num_workers seed",
}
# In: numbers may differ by it. A field that is named nowhere counts as in, and fails a test until it is named.
_IN = {
    "trainer": (
        "precision max_epochs min_epochs max_steps min_steps max_time limit_train_batches limit_val_batches "
        "limit_test_batches overfit_batches val_check_interval check_val_every_n_epoch num_sanity_val_steps "
        "accumulate_grad_batches gradient_clip_val gradient_clip_algorithm deterministic benchmark inference_mode "
        "plugins reload_dataloaders_every_n_epochs callbacks"
    ),
    "model.backbone": "quantization dtype readout num_labels gradient_checkpointing",
    "model.lora": "r alpha dropout target_modules",
    "model.optimisation": "learning_rate weight_decay warmup decay",
    "model": (
        "class_path prior_std samples support chunk members members_per_pass share_init share_data_order patience "
        "kl_to_base l2_product factors init init_std kl_schedule kl_weight kl_over optimisers std_learning_rate "
        "predict coherent context width beta contextual_learning_rate nll_scale scale_learning_rate "
        "beta1 beta2 clip_radius ess hess_init"
    ),
    "data": (
        "class_path labels calibration ood batch_size eval_batch_size max_test max_length readout "
        "shuffle_options permutations shots chat config size subjects whole classes marks name"
    ),
    "Laplace": (
        "structure precision prior_mean mean groups subset_of_weights predict samples scale seed sites temperature "
        "dropout dtype prune max_jacobian_bytes logits_fn label_fn train_batches val_batches"
    ),
    "SWAG": (
        "start every unit mode rank preset divisor scale samples predict schedule seed start_from_best dropout device "
        "logits_fn label_fn"
    ),
    "TFB": "tolerance anchors source samples predict bounds iterations per_layer seed dropout loader logits_fn",
    "Temperature": "max_iter logits_fn label_fn val_batches",
    "Decision": "risk risks delta alpha set_method logits_fn label_fn",
    "SavedPosteriors": "posteriors samples predict name seed dropout logits_fn",
    "Schedule": "kind warmup anneal_epochs swa_lr",
}
# Refused: cells are runs of one process on one device, which leave whole run folders.
_REFUSED: dict[str, tuple[tuple[Any, ...], str]] = {
    "members": (("all",), "all: a cell predicts with all members that it has trained"),
    "trainer.strategy": (("auto",), "auto: a cell runs on one device"),
    "trainer.devices": (("auto", 1, "1"), "1: a cell runs on one device, and a grid on many"),
    "trainer.num_nodes": ((1,), "1: a cell runs on one device, and a grid on many"),
    "trainer.sync_batchnorm": ((False,), "false: a cell runs on one device"),
    "trainer.fast_dev_run": ((False, 0), "false: a cell leaves a run folder; give limit_train_batches instead"),
    "trainer.barebones": ((False,), "false: a cell leaves a run folder"),
}
# Callbacks that change no number.
_WATCHERS = {
    "Dynamics",
    "VocabularyUncertainty",
    "LearningRateMonitor",
    "DeviceStatsMonitor",
    "ModelSummary",
    "RichModelSummary",
    "RichProgressBar",
    "TQDMProgressBar",
}
# Written by a command or by the run folder itself; where they lie or what they cost is no part of a result.
_OUT |= {"Laplace": "directory", "Ensemble": "store"}

_VERDICTS = {
    f"{room}.{name}" if room else name: verdict
    for table, verdict in ((_IN, IN), (_OUT, OUT))
    for room, names in table.items()
    for name in names.split()
}


def verdict(field: str) -> str | None:
    """``in``, ``out`` or ``refused``; None for a field that nobody has judged, which counts as in.

    Args:
        field: Such as ``trainer.precision``, ``model.lora.r``, ``data.labels``, ``Laplace.structure``.
    """
    room = field.partition(".")[0]
    if room in _WATCHERS:
        return OUT
    return "refused" if field in _REFUSED else _VERDICTS.get(field)


def counting_fields(config: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a resolved configuration that count, by name, as plain values.

    Args:
        config: With every default written out, as nested mappings.

    Raises:
        UsageError: a field has a value that no cell of a grid can have.
    """
    found: dict[str, Any] = {}
    for field, value in _fields(config):
        if field in _REFUSED:
            values, why = _REFUSED[field]
            require(field, value, value in values, why)
        elif verdict(field) != OUT:
            found[field] = _callbacks(value) if field == "trainer.callbacks" else _plain(value)
    return found


def _fields(value: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    """Every leaf with its dotted name; ``init_args`` are fields of what they initialise."""
    for key, inner in value.items():
        name = path if key == "init_args" else f"{path}.{key}".strip(".")
        if isinstance(inner, Mapping) and inner and verdict(name) is None:
            yield from _fields(inner, name)
        else:
            yield name, _class_name(inner) if key == "class_path" else inner


def _callbacks(given: Any) -> list[Any]:
    """Callbacks in their order, without those that only watch."""
    entries = given if isinstance(given, list) else [given] if given else []
    found: list[Any] = []
    for entry in entries:
        own: Mapping[str, Any] = {"class_path": entry} if isinstance(entry, str) else entry
        name = _class_name(own["class_path"])
        short = name.rpartition(".")[2]
        options = own.get("init_args") or {}
        if short not in _WATCHERS:
            values = {key: _plain(value) for key, value in options.items() if verdict(f"{short}.{key}") != OUT}
            found.append([name, values])
    return found


def _class_name(path: str) -> str:
    """A class of this package by its name alone: it can be named by more than one path."""
    return f"bayeslora.{path.rpartition('.')[2]}" if path.partition(".")[0] == "bayeslora" else path


def _plain(value: Any) -> Any:
    """The value as JSON has it; a number is the same whether it was written 1 or 1.0."""
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if isinstance(value, set | frozenset):
        return sorted(map(str, value))
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)
