"""The commands that faults are put to, each tiny: what comes before, their arguments, and the files they result in."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tests.helpers.runs import questions

TRAINER = {
    "max_steps": 6,
    "accelerator": "cpu",
    "devices": 1,
    "limit_val_batches": 1,
    "num_sanity_val_steps": 0,
    "log_every_n_steps": 1,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}
MODEL = {
    "backbone": {"pretrained": "embedded"},
    "lora": {"r": 2, "dropout": 0.1, "target_modules": ["q_proj", "v_proj"]},
    "optimisation": {"learning_rate": 1e-3, "warmup": 0.2},
    "samples": 2,
}
SWAG = {"class_path": "bayeslora.callbacks.SWAG", "init_args": {"start": 1, "every": 1, "unit": "step", "samples": 2}}
LAPLACE = {"class_path": "bayeslora.callbacks.Laplace"}
DYNAMICS = {"class_path": "bayeslora.callbacks.Dynamics"}
TEMPERATURE, DECISION = ({"class_path": f"bayeslora.callbacks.{name}"} for name in ("Temperature", "Decision"))
SAVED = "saved"  # the configuration of a test that predicts with the run's own posterior/
TRAINED = ("checkpoints/last.ckpt", "posterior/**/*")
TESTED = ("test/*.parquet", "test/*.json", "posterior/**/*", "serving/**/*")


@dataclass(frozen=True)
class Case:
    """A command.

    Attributes:
        command: Its arguments, from the folder that holds ``data/``, ``run/`` and its configuration.
        result: The files that it leaves, as patterns within ``run/``.
        before: Arguments of the commands that come before it.
        checkpoint: The pattern of checkpoints that it goes on from, where it does.
        asks: Whether it has to be told so, by ``--ckpt_path``.
        spawns: Whether it starts processes of its own.
    """

    command: Callable[[Path], list[str]]
    result: tuple[str, ...]
    before: tuple[Callable[[Path], list[str]], ...] = ()
    checkpoint: str = ""
    asks: bool = False
    spawns: bool = False


def write_configurations(folder: Path) -> None:
    """The questions and the configurations that the commands of :data:`CASES` name."""
    questions(folder / "data")
    rows = [json.loads(line) for line in (folder / "data" / "test.jsonl").read_text().splitlines()]
    (folder / "ask.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows * 4))
    _write(folder, "lora", "LoRAModule")
    _write(folder, "swag", "LoRAModule", SWAG)
    _write(folder, "blob", "BLoBModule")
    _write(folder, "c_lora", "CLoRAModule")
    _write(folder, "ensemble", "LoRAEnsemble", members=2)
    _write(folder, "tested", "LoRAModule", TEMPERATURE, DECISION)
    _write(folder, "laplace", "LoRAModule", LAPLACE)
    _write(folder, "dynamics", "LoRAModule", DYNAMICS)
    posteriors = {"posteriors": [str(folder / "run" / "posterior")], "samples": 2}
    _write(folder, SAVED, "LoRAModule", {"class_path": "bayeslora.callbacks.SavedPosteriors", "init_args": posteriors})
    common = {"options": {key: _content(folder, "LoRAModule")[key] for key in ("trainer", "model")}}
    data = _content(folder, "LoRAModule")["data"]
    grid = {
        "common": common,
        "datasets": {"own": {"configs": [], "options": {"data": data}}},
        "methods": {
            "mle": {"configs": []},
            "temperature": {"configs": [], "of": "mle", "options": {"trainer": {"callbacks+": [TEMPERATURE]}}},
        },
    }
    (folder / "grid.yaml").write_text(yaml.safe_dump(grid, sort_keys=False))


def _write(folder: Path, name: str, module: str, *callbacks: dict[str, Any], **options: Any) -> None:
    content = _content(folder, module)
    content["model"]["init_args"] |= options
    if module == "LoRAEnsemble":
        del content["model"]["init_args"]["samples"]
    content["trainer"] |= {"callbacks": list(callbacks)} if callbacks else {}
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(content, sort_keys=False))


def _content(folder: Path, module: str) -> dict[str, Any]:
    data = {"path": str(folder / "data"), "labels": 40, "batch_size": 8, "calibration": 8}
    return {
        "seed_everything": 3,
        "trainer": {**TRAINER},
        "save_every_n_steps": 1,
        "model": {"class_path": module, "init_args": {**MODEL}},
        "data": {"class_path": "JSONLDataModule", "init_args": data},
    }


def on(stage: str, name: str, *options: str) -> Callable[[Path], list[str]]:
    def arguments(folder: Path) -> list[str]:
        root = f"--trainer.default_root_dir={folder / 'run'}"
        return [stage, "-c", str(folder / f"{name}.yaml"), root, *options]

    return arguments


def _predict(folder: Path) -> list[str]:
    files = ["--questions", str(folder / "ask.jsonl"), "--out", str(folder / "run" / "answers.jsonl")]
    return ["predict", "--run", str(folder / "run"), *files]


def _benchmark(folder: Path) -> list[str]:
    return ["benchmark", "-c", str(folder / "grid.yaml"), "--out", str(folder / "run"), "--seeds", "0"]


def _fit(name: str) -> Case:
    return Case(on("fit", name), TRAINED, checkpoint="checkpoints/*.ckpt", asks=True)


_FITTED = on("fit", "lora")
_CELLS = ("own/*/seed-0/test/predictions.parquet", "own/*/seed-0/test/metrics.json")
CASES = {
    "fit-swag": _fit("swag"),
    "fit-blob": _fit("blob"),
    "fit-c_lora": _fit("c_lora"),
    "ensemble": Case(
        on("ensemble", "ensemble"),
        ("members/*/*.safetensors", "posterior/**/*"),
        checkpoint="members/begun/*/checkpoints/last.ckpt",
    ),
    "test": Case(on("test", "tested", "--overwrite"), TESTED, before=(_FITTED,)),
    "laplace": Case(on("laplace", "laplace", "--overwrite"), TESTED, before=(_FITTED,)),
    "predict": Case(_predict, ("answers.jsonl",), before=(_FITTED, on("test", "tested"))),
    "cell": Case(
        lambda folder: [*_benchmark(folder), "--cell", "own/temperature/0"],
        _CELLS,
        checkpoint="own/mle/seed-0/checkpoints/last.ckpt",
    ),
    "benchmark": Case(
        _benchmark,
        (*_CELLS, "tables/own.*"),  # not tables/costs-own.csv, which holds times
        checkpoint="own/mle/seed-0/checkpoints/last.ckpt",
        spawns=True,
    ),
}
