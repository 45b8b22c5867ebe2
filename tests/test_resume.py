"""A run that is killed anywhere and resumed ends bit for bit as if it had never been killed."""

import json
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from tests.helpers.runs import assert_equal, questions

ROOT = Path(__file__).parent.parent
CONFIG: dict[str, Any] = {
    "seed_everything": 3,
    "trainer": {
        "max_epochs": 4,
        "accelerator": "cpu",
        "devices": 1,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "val_check_interval": 5,
        "log_every_n_steps": 1,
    },
    "save_every_n_steps": 2,
}
MODEL = {
    "backbone": {"pretrained": "embedded", "gradient_checkpointing": True},
    "lora": {"dropout": 0.1},
    "learning_rate": 1e-3,
    "weight_decay": 0.01,
    "warmup": 0.2,
    "samples": 3,
}
TRAINER = {"accumulate_grad_batches": 2, "gradient_clip_val": 0.5}  # which two optimisers in a step cannot have
CYCLE = {"kl_schedule": "cyclic", "kl_weight": 0.01}  # of an epoch's nine batches
METHODS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "lora": ("LoRAModule", {"prior_std": 1.0}, TRAINER),
    "blob": ("BLoBModule", CYCLE, TRAINER),
    "blob_two": ("BLoBModule", {**CYCLE, "optimisers": "two"}, {}),
    "scalabl": ("ScalaBLModule", {**CYCLE, "scale_learning_rate": 0.05}, TRAINER),
    "ivon": ("IVONModule", {"learning_rate": 0.3, "ess": 1e4}, TRAINER),
    "c_lora_two": ("CLoRAModule", {**CYCLE, "optimisers": "two"}, {}),
}


def command(stage: str, config: Path, root: Path, *options: str) -> list[str]:
    run = ["--trainer.default_root_dir", str(root), *options]
    return [sys.executable, str(ROOT / "cli.py"), stage, "-c", str(config), *run]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, Path, Path]]:
    """A method's configuration, the folder of a run of it that nothing stopped, and that of one that was killed."""
    folder = tmp_path_factory.mktemp("resume")
    data = {"path": str(questions(folder / "data")), "labels": 90, "batch_size": 8}

    @cache
    def of(method: str) -> tuple[Path, Path, Path]:
        kind, arguments, options = METHODS[method]
        config, whole, killed = (folder / f"{method}{suffix}" for suffix in (".yaml", "", "-killed"))
        own = {
            "trainer": {**CONFIG["trainer"], **options},
            "model": {"class_path": kind, "init_args": {**MODEL, **arguments}},
            "data": {"class_path": "JSONLDataModule", "init_args": data},
        }
        config.write_text(yaml.safe_dump({**CONFIG, **own}))
        subprocess.run(command("fit", config, whole), check=True, capture_output=True)
        for seed in range(2 if method == "lora" else 1):
            kill(config, killed, random.Random(f"{method} {seed}").uniform(0, 0.2))
        subprocess.run(command("fit", config, killed, "--ckpt_path", "last"), check=True, capture_output=True)
        return config, whole, killed

    return of


def kill(config: Path, root: Path, delay: float) -> None:
    """Train until a checkpoint has been written, and kill the run some seconds later."""
    last = root / "checkpoints" / "last.ckpt"
    before = last.stat().st_mtime_ns if last.exists() else 0
    options = ["--ckpt_path", "last"] if before else []
    process = subprocess.Popen(command("fit", config, root, *options), stdout=subprocess.DEVNULL)
    while process.poll() is None and (last.stat().st_mtime_ns if last.exists() else 0) == before:
        time.sleep(0.001)
    time.sleep(delay)
    process.kill()
    assert process.wait() == -signal.SIGKILL  # it had not ended by itself


def state(root: Path) -> dict:
    return torch.load(root / "checkpoints" / "last.ckpt", weights_only=True)


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_killed_and_resumed_equals_uninterrupted(runs: Callable, method: str) -> None:
    _, whole, killed = runs(method)
    ended, reference = state(killed), state(whole)
    assert ended["global_step"] == reference["global_step"]
    assert len(ended["optimizer_states"]) == (2 if method.endswith("two") else 1)
    for part in ("state_dict", "optimizer_states", "lr_schedulers", "bayeslora"):
        assert_equal(ended[part], reference[part], part)


@pytest.mark.slow
def test_a_resumed_run_predicts_as_an_uninterrupted_one(runs: Callable) -> None:
    config, *folders = runs("lora")
    for folder in folders:
        subprocess.run(command("test", config, folder), check=True, capture_output=True)
    metrics = [json.loads((folder / "test" / "metrics.json").read_text()) for folder in folders]
    assert metrics[0] == metrics[1]


@pytest.mark.slow
def test_checkpoints_hold_no_base(runs: Callable) -> None:
    _, root, _ = runs("lora")
    checkpoint = state(root)
    assert all(".lora_" in name for name in checkpoint["state_dict"])
    trainable = sum(tensor.numel() for tensor in checkpoint["state_dict"].values())
    assert trainable == json.loads((root / "run.json").read_text())["trainable_parameters"]
    assert (root / "checkpoints" / "last.ckpt").stat().st_size < 3 * 4 * trainable + 300_000
