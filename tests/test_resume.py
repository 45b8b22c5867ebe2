"""A run that is killed anywhere and resumed ends bit for bit as if it had never been killed."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parent.parent
CONFIG = """
seed_everything: 3
trainer:
  max_epochs: 4
  accelerator: cpu
  devices: 1
  accumulate_grad_batches: 2
  gradient_clip_val: 0.5
  enable_progress_bar: false
  enable_model_summary: false
  val_check_interval: 5
  log_every_n_steps: 1
model:
  class_path: LoRAModule
  init_args:
    backbone: {pretrained: embedded, gradient_checkpointing: true}
    lora: {dropout: 0.1}
    learning_rate: 1.0e-3
    weight_decay: 0.01
    prior_std: 1.0
    warmup: 0.2
    samples: 3
data:
  class_path: JSONLDataModule
  init_args: {path: PATH, labels: 90, batch_size: 8}
save_every_n_steps: 2
"""


def questions(folder: Path) -> Path:
    """A small benchmark in JSONL."""
    from bayeslora.datamodules.synthetic_process import questions as synthetic

    folder.mkdir()
    for split, source, n in (("train", "train", 120), ("validation", "easy", 20), ("test", "test", 40)):
        rows = [
            {"id": q.id, "question": q.question, "options": list(q.options), "label": q.label}
            for q in synthetic(source)[:n]
        ]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def command(stage: str, config: Path, root: Path, *options: str) -> list[str]:
    run = ["--trainer.default_root_dir", str(root), *options]
    return [sys.executable, str(ROOT / "cli.py"), stage, "-c", str(config), *run]


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("resume")
    file = folder / "config.yaml"
    file.write_text(CONFIG.replace("PATH", str(questions(folder / "data"))))
    return file


@pytest.fixture(scope="module")
def uninterrupted(config: Path) -> Path:
    root = config.parent / "uninterrupted"
    subprocess.run(command("fit", config, root), check=True, capture_output=True)
    subprocess.run(command("test", config, root), check=True, capture_output=True)
    return root


def state(root: Path) -> dict:
    return torch.load(root / "checkpoints" / "last.ckpt", weights_only=True)


def assert_equal(first: object, second: object, where: str = "") -> None:
    """Bit for bit, through dicts and lists."""
    if isinstance(first, torch.Tensor):
        assert torch.equal(first, second), where
    elif isinstance(first, dict):
        assert first.keys() == second.keys(), where
        for key in first:
            assert_equal(first[key], second[key], f"{where}/{key}")
    elif isinstance(first, list | tuple):
        for index, pair in enumerate(zip(first, second, strict=True)):
            assert_equal(*pair, f"{where}/{index}")
    else:
        assert first == second, where


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("seed", range(2))
def test_killed_and_resumed_equals_uninterrupted(config: Path, uninterrupted: Path, seed: int) -> None:
    root = config.parent / f"killed-{seed}"
    moments = random.Random(seed)
    last = root / "checkpoints" / "last.ckpt"
    kills = 0
    for _ in range(2):
        options = ["--ckpt_path", "last"] if last.exists() else ["--overwrite"]
        process = subprocess.Popen(command("fit", config, root, *options), stdout=subprocess.DEVNULL)
        before = last.stat().st_mtime_ns if last.exists() else 0
        while process.poll() is None and (last.stat().st_mtime_ns if last.exists() else 0) == before:
            time.sleep(0.001)  # until this process has written a checkpoint
        time.sleep(moments.uniform(0, 0.3))
        if process.poll() is None:
            os.kill(process.pid, signal.SIGKILL)
            kills += 1
        process.wait()
    assert kills > 0
    subprocess.run(command("fit", config, root, "--ckpt_path", "last"), check=True, capture_output=True)
    ended, reference = state(root), state(uninterrupted)
    assert ended["global_step"] == reference["global_step"]
    for part in ("state_dict", "optimizer_states", "lr_schedulers", "bayeslora"):
        assert_equal(ended[part], reference[part], part)
    subprocess.run(command("test", config, root), check=True, capture_output=True)
    metrics = [json.loads((folder / "test" / "metrics.json").read_text()) for folder in (root, uninterrupted)]
    assert metrics[0] == metrics[1]


@pytest.mark.slow
def test_checkpoints_hold_no_base(uninterrupted: Path) -> None:
    checkpoint = state(uninterrupted)
    assert all(".lora_" in name for name in checkpoint["state_dict"])
    trainable = sum(tensor.numel() for tensor in checkpoint["state_dict"].values())
    assert trainable == json.loads((uninterrupted / "run.json").read_text())["trainable_parameters"]
    assert (uninterrupted / "checkpoints" / "last.ckpt").stat().st_size < 3 * 4 * trainable + 300_000
