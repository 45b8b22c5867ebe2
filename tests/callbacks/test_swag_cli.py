"""SWAG from the command line: overlays, the run folder's posterior, mixtures of runs, the paper's configurations."""

import json
from pathlib import Path

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from safetensors.torch import load_file

from bayeslora.callbacks.schedule import Schedule
from bayeslora.callbacks.swag import SWAG
from bayeslora.cli import main
from bayeslora.datamodules.jsonl import JSONLDataModule
from bayeslora.lightning_modules.lora import LoRAModule
from bayeslora.models.loading import LoRA
from bayeslora.posteriors.mixture import Mixture
from bayeslora.posteriors.state import load_posterior
from bayeslora.posteriors.swag import SWAGPosterior
from tests.helpers.command_line import metrics
from tests.helpers.swag_runs import arguments

ROOT = Path(__file__).parent.parent.parent
OVERLAY = ROOT / "bayeslora" / "configs" / "method" / "swag.yaml"
MULTISWAG = ROOT / "bayeslora" / "configs" / "method" / "multiswag.yaml"
PAPERS = ROOT / "bayeslora" / "configs" / "papers" / "swag_lora"
PAPER = sorted(set(PAPERS.glob("*.yaml")) - {PAPERS / "table.yaml"})  # that is a grid


@pytest.fixture(scope="module")
def runs(data: Path) -> list[Path]:
    """Two finished SWAG runs of different seeds."""
    roots = [data.parent / name for name in ("first", "second")]
    for seed, root in enumerate(roots):
        assert main(arguments("fit", root, data, f"-c={OVERLAY}", f"--seed_everything={seed}")) == 0
    return roots


def test_the_run_leaves_its_posterior_with_a_plain_adapter_of_the_mean(runs: list[Path]) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    from bayeslora.models.pretrained import resolve_pretrained

    posterior = load_posterior(runs[0] / "posterior")
    assert isinstance(posterior, SWAGPosterior)
    assert posterior.snapshots == 3
    adapter = load_file(runs[0] / "posterior" / "adapter_model.safetensors")
    assert all(torch.equal(adapter[name], value) for name, value in posterior.mean().items())
    assert len(adapter) == len(posterior.mean())  # and nothing else
    base = AutoModelForCausalLM.from_pretrained(resolve_pretrained("embedded"))
    loaded = PeftModel.from_pretrained(base, runs[0] / "posterior")
    name, value = next(iter(posterior.mean().items()))
    assert torch.equal(loaded.state_dict()[name.replace(".weight", ".default.weight")], value)


def test_checkpoint_tests_with_its_snapshots_and_temperature(runs: list[Path], data: Path) -> None:
    temperature = ROOT / "bayeslora" / "configs" / "method" / "temperature.yaml"
    assert main(arguments("test", runs[0], data, f"-c={OVERLAY}", f"-c={temperature}")) == 0
    assert metrics(runs[0])["method"] == "mle+swag+temperature"
    assert metrics(runs[0])["n_members"] == 10


def test_finished_runs_make_multiswag(runs: list[Path], data: Path, tmp_path: Path) -> None:
    posteriors = [str(root / "posterior") for root in runs]
    options = [f"-c={MULTISWAG}", f"--trainer.callbacks.posteriors={json.dumps(posteriors)}"]
    options += [f"--model.backbone.adapter={posteriors[0]}", "--trainer.callbacks.samples=4"]
    assert main(arguments("test", tmp_path / "multi", data, *options)) == 0
    assert metrics(tmp_path / "multi")["method"] == "mle+multiswag"
    assert metrics(tmp_path / "multi")["n_members"] == 8
    assert main(arguments("test", tmp_path / "base", data, *options, "--ckpt_path=base")) == 2


def test_a_posterior_of_another_rank_is_one_line(runs: list[Path], data: Path, tmp_path: Path, capsys) -> None:
    posteriors = json.dumps([str(runs[0] / "posterior")])
    options = [f"-c={MULTISWAG}", f"--trainer.callbacks.posteriors={posteriors}", "--model.lora.r=2"]
    fit = arguments("fit", tmp_path / "other", data, "--model.lora.r=2", "--trainer.max_epochs=1")
    assert main(fit) == 0
    capsys.readouterr()
    assert main(arguments("test", tmp_path / "other", data, *options)) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("bayeslora: error:")]
    assert len(lines) == 1
    assert "has shape" in lines[0]
    assert not (tmp_path / "other" / "test").exists()


def test_a_late_start_is_one_line_and_leaves_no_run(data: Path, tmp_path: Path, capsys) -> None:
    capsys.readouterr()
    options = [f"-c={OVERLAY}", "--trainer.callbacks.start=6"]
    assert main(arguments("fit", tmp_path / "late", data, *options)) == 2
    assert "the run has 6 whole epochs" in capsys.readouterr().err
    assert not (tmp_path / "late" / "checkpoints").exists()
    assert not (tmp_path / "late" / "posterior").exists()


def test_too_few_snapshots_leave_the_plain_posterior(data: Path, tmp_path: Path) -> None:
    root = tmp_path / "short"
    assert main(arguments("fit", root, data, f"-c={OVERLAY}", "--trainer.callbacks.start=5")) == 0
    assert load_posterior(root / "posterior").family == "point"
    assert main(arguments("test", root, data, f"-c={OVERLAY}", "--trainer.callbacks.start=5")) == 2


def test_a_checkpoint_ensemble_is_saved_as_its_members(data: Path, tmp_path: Path) -> None:
    root, options = tmp_path / "members", ["--trainer.callbacks.mode=checkpoints", "--trainer.callbacks.rank=2"]
    assert main(arguments("fit", root, data, f"-c={OVERLAY}", *options)) == 0
    saved = load_posterior(root / "posterior")
    assert isinstance(saved, Mixture)
    assert [component.family for component in saved.components] == ["point", "point"]
    assert main(arguments("test", root, data, f"-c={OVERLAY}", *options)) == 0
    assert metrics(root)["n_members"] == 2


class Killed(L.Callback):
    """Ends a run between two micro-batches of one optimiser step."""

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, batch: object, index: int) -> None:
        if trainer.global_step == 5 and index % 2 == 1:
            raise InterruptedError


def test_a_run_killed_inside_an_epoch_collects_on_bit_for_bit(data: Path, tmp_path: Path) -> None:
    def run(*callbacks: L.Callback, ckpt: Path | None = None) -> SWAG:
        swag = SWAG(start=2, every=2, unit="step", rank=2, schedule=Schedule("cyclic"))
        saved = ModelCheckpoint(tmp_path, filename="last", every_n_train_steps=1, enable_version_counter=False)
        options = {
            "accelerator": "cpu",
            "logger": False,
            "enable_progress_bar": False,
            "use_distributed_sampler": False,
        }
        trainer = L.Trainer(
            max_epochs=4,
            accumulate_grad_batches=2,
            callbacks=[swag, saved, *callbacks],
            default_root_dir=tmp_path,
            **options,
        )
        module = LoRAModule(lora=LoRA(dropout=0.1), learning_rate=1e-3)
        trainer.fit(module, datamodule=JSONLDataModule(path=str(data), labels=60, batch_size=8), ckpt_path=ckpt)
        return swag

    whole = run()
    with pytest.raises(InterruptedError):
        run(Killed())
    checkpoint = tmp_path / "last.ckpt"
    states = torch.load(checkpoint, weights_only=True)["callbacks"]
    assert states[whole.state_key]["moments"][0]["count"] == 2
    resumed = run(ckpt=checkpoint)
    assert resumed.moments.count == whole.moments.count == 6
    for name in ("mean", "m2", "ring"):
        assert torch.equal(getattr(resumed.moments, name), getattr(whole.moments, name))


@pytest.mark.parametrize("config", PAPER, ids=lambda path: path.stem)
def test_the_papers_configurations_parse(config: Path, capsys) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(["fit", "-c", str(config), "--print_config"])
    assert exit_.value.code == 0
    assert "protocol: swag_lora" in capsys.readouterr().out
    assert len(PAPER) == 4
