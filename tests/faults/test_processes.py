"""Runs whose processes are started in other ways: by fork, and in the shadow of a scheduler."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch.utilities import rank_zero_only

from bayeslora import Backbone, LoRA, LoRAModule
from bayeslora.commands.checkpoints import load
from bayeslora.commands.scheduler import leave_slurms_tasks, scheduler_plugins
from tests.helpers.runs import questions

ROOT = Path(__file__).parents[2]
FIT = ["fit", "--model", "LoRAModule", "--model.backbone.pretrained", "embedded", "--data", "JSONLDataModule"]
SHORT = ["--trainer.accelerator", "cpu", "--trainer.max_steps", "2", "--trainer.limit_val_batches", "1"]


def _command(args: list[str], **environment: str) -> subprocess.CompletedProcess[str]:
    own = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **environment}
    return subprocess.run([sys.executable, str(ROOT / "cli.py"), *args], capture_output=True, text=True, env=own)


def test_a_process_without_a_model_takes_what_others_have_trained() -> None:
    trained, started = (LoRAModule(Backbone("embedded"), LoRA(), seed=1) for _ in range(2))
    trained.configure_model()
    for parameter in trained.trainable().values():
        parameter.data.fill_(0.5)
    started.load_state_dict(trained.state_dict())
    assert all(torch.equal(p, torch.full_like(p, 0.5)) for p in started.trainable().values())


@pytest.mark.slow
def test_processes_that_are_forked_end_in_order(tmp_path: Path) -> None:
    data = ["--data.path", str(questions(tmp_path / "data")), "--trainer.default_root_dir", str(tmp_path / "run")]
    done = _command([*FIT, *SHORT, *data, "--trainer.strategy", "ddp_fork", "--trainer.devices", "2"])
    assert done.returncode == 0, done.stderr
    assert load(tmp_path / "run" / "checkpoints" / "last.ckpt")["global_step"] == 2
    assert (tmp_path / "run" / "posterior" / "adapter_model.safetensors").exists()


def test_slurms_shadow_changes_nothing_of_a_single_process(tmp_path: Path) -> None:
    data = ["--data.path", str(questions(tmp_path / "data")), "--trainer.devices", "1"]
    shadow = {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "4", "SLURM_PROCID": "3", "SLURM_JOB_NAME": "train"}
    shadow |= {"SLURM_LOCALID": "3", "SLURM_NODEID": "0", "SLURM_NODELIST": "localhost", "SLURM_NTASKS_PER_NODE": "4"}
    roots = {name: tmp_path / name for name in ("plain", "shadow")}
    for name, environment in (("plain", {}), ("shadow", shadow)):
        options = ["--trainer.default_root_dir", str(roots[name]), "--trainer.log_every_n_steps", "1"]
        done = _command([*FIT, *SHORT, *data, *options], **environment)
        assert done.returncode == 0, done.stderr
    for name in ("checkpoints/last.ckpt", "run.json", ".lock", "logs/fit/metrics.csv", "fit-config.yaml"):
        assert [name for root in roots.values() if (root / name).exists()] == [name, name]
    states = [load(root / "checkpoints" / "last.ckpt")["state_dict"] for root in roots.values()]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert json.loads((roots["shadow"] / "run.json").read_text())["seed"] == 0


def test_slurms_checkpoint_is_never_loaded_in_place_of_what_is_asked_for(tmp_path: Path) -> None:
    data, root = questions(tmp_path / "data"), tmp_path / "run"
    root.mkdir()
    (root / "hpc_ckpt_1.ckpt").write_bytes(b"half trained")
    options = ["--data.path", str(data), "--trainer.default_root_dir", str(root), "--trainer.devices", "1"]
    args = ["test", *FIT[1:], "--ckpt_path", "base", "--trainer.accelerator", "cpu", *options]
    done = _command(args, SLURM_NTASKS="1", SLURM_JOB_NAME="train", SLURM_JOB_ID="7")
    assert done.returncode == 0, done.stderr  # it could not be: it is no checkpoint at all


@pytest.mark.parametrize(
    ("devices", "nodes", "tasks", "left"),
    [
        (1, 1, "4", True),
        ("1", 1, "4", True),
        ("[0]", 1, "4", True),
        ("auto", 1, "1", True),
        (4, 1, "4", False),
        (1, 2, "2", False),
        ("auto", 1, "4", False),
    ],
)
def test_what_is_a_run_of_one_process(
    devices: object, nodes: int, tasks: str, left: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in list(os.environ):
        if name.startswith("SLURM_") or name in ("LOCAL_RANK", "RANK", "TORCHELASTIC_RUN_ID"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("SLURM_NTASKS", tasks)
    monkeypatch.setenv("SLURM_NTASKS_PER_NODE", tasks)
    monkeypatch.setenv("SLURM_PROCID", "3")
    monkeypatch.setattr(rank_zero_only, "rank", 3)
    leave_slurms_tasks(SimpleNamespace(devices=devices, num_nodes=nodes))
    assert ("SLURM_NTASKS" not in os.environ) == left
    assert rank_zero_only.rank == (0 if left else 3)
    environments = scheduler_plugins([])
    assert [environment.auto_requeue for environment in environments] == ([] if left else [False])
    assert scheduler_plugins(environments) == []
