"""``bayeslora tfb``: adapters of plain peft, of runs of every method, and what is refused."""

import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
import yaml

from bayeslora.cli import main
from bayeslora.commands.tfb import as_test
from bayeslora.configs import CONFIGS
from bayeslora.models.pretrained import resolve_pretrained
from bayeslora.posteriors.state import load_posterior
from bayeslora.results.prediction_file import read_predictions
from tests.helpers.runs import assert_equal

METHODS: dict[str, dict[str, Any]] = {
    "LoRAModule": {"prior_std": 0.5},
    "BLoBModule": {"init_std": 0.05},
    "CLoRAModule": {"init_std": 0.2},
}
Folder = tuple[Path, Path]


def write_config(file: Path, data: Path, kind: str = "LoRAModule", **options: Any) -> Path:
    """A configuration of the embedded base, three epochs, and TFB's options where it is asked for."""
    model = {"class_path": kind, "init_args": {"backbone": {"pretrained": "embedded"}, **options}}
    source = {"class_path": "JSONLDataModule", "init_args": {"path": str(data), "labels": 40, "batch_size": 8}}
    trainer = {"accelerator": "cpu", "enable_progress_bar": False, "enable_model_summary": False, "max_epochs": 3}
    file.write_text(yaml.safe_dump({"model": model, "data": source, "trainer": trainer}))
    return file


@pytest.fixture(scope="module")
def config(data: Path) -> Path:
    return write_config(data.parent / "plain.yaml", data)


@pytest.fixture(scope="module")
def foreign(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter that plain peft made and saved: another rank, scale and targets than this package's own."""
    folder = tmp_path_factory.mktemp("foreign")
    base = transformers.AutoModelForCausalLM.from_pretrained(resolve_pretrained("embedded"))
    options = {"task_type": "CAUSAL_LM", "target_modules": ["q_proj", "v_proj", "down_proj"], "use_rslora": True}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = peft.get_peft_model(base, peft.LoraConfig(r=4, lora_alpha=4, **options))
        for name, parameter in network.named_parameters():
            if ".lora_B." in name:
                torch.nn.init.normal_(parameter, std=0.1)
    network.save_pretrained(folder)
    return folder


def tfb(adapter: Path, root: Path, *configs: Path) -> dict[str, Any]:
    """The metrics of the command, for a tolerance that small adapters bear."""
    files = [part for config in configs for part in ("-c", str(config))]
    options = ["--trainer.callbacks.tolerance=0.05", "--trainer.callbacks.samples=4"]
    assert main(["tfb", "--adapter", str(adapter), *files, f"--trainer.default_root_dir={root}", *options]) == 0
    return json.loads((root / "test" / "metrics.json").read_text())


def check(root: Path, names: set[str]) -> None:
    """Some noise was found and kept within the tolerance, and it shows in the predictions."""
    posterior = load_posterior(root / "posterior" / "tfb")
    assert posterior.family == "tfb"
    assert posterior.mean().keys() == names
    assert min(posterior.sigma.values()) > 0
    assert posterior.record["change"] <= 0.05
    assert posterior.record["options"]["tolerance"] == 0.05
    answers = next(iter(read_predictions(root / "test" / "predictions.parquet").datasets.values()))
    assert answers.members.shape[1] == 4
    assert (answers.members.std(1) > 0).any()


def weights(adapter: Path) -> dict[str, torch.Tensor]:
    return peft.utils.load_peft_weights(str(adapter), device="cpu")


def test_an_adapter_of_plain_peft(foreign: Path, config: Path, tmp_path: Path) -> None:
    metrics = tfb(foreign, tmp_path, config)
    assert (metrics["method"], metrics["n_members"]) == ("mle+tfb", 4)
    check(tmp_path, set(weights(foreign)))
    kept = tmp_path / "posterior" / "tfb"
    assert_equal(weights(kept), weights(foreign))  # which plain peft loads as it was
    saved, own = (peft.PeftConfig.from_pretrained(folder) for folder in (kept, foreign))
    assert (saved.r, saved.lora_alpha, saved.use_rslora) == (own.r, own.lora_alpha, True)


@pytest.mark.parametrize("kind", METHODS)
def test_a_run_of_every_method(data: Path, config: Path, tmp_path: Path, kind: str) -> None:
    """As the plain adapter it left behind, and as the method's own mean."""
    own = write_config(tmp_path / "own.yaml", data, kind, learning_rate=3e-3, **METHODS[kind])
    run = tmp_path / "run"
    assert main(["fit", "-c", str(own), f"--trainer.default_root_dir={run}"]) == 0
    adapter, before = run / "posterior", load_posterior(run / "posterior").state_dict()
    tfb(adapter, tmp_path / "plain", config)
    check(tmp_path / "plain", set(weights(adapter)))
    if kind != "LoRAModule":
        tfb(adapter, tmp_path / "own", own)
        names = set(weights(adapter)) if kind == "BLoBModule" else set(load_posterior(adapter).parameters)
        check(tmp_path / "own", names)
    assert_equal(load_posterior(adapter).state_dict(), before)


def test_arguments_stand_for_a_test(config: Path) -> None:
    args = as_test(["--adapter", "a", "-c", "x.yaml", "--trainer.callbacks.tolerance", "0.1", "--config=y.yaml"])
    assert args[:3] == ["test", "--config=x.yaml", "--config=y.yaml"]
    assert args[3:5] == ["--trainer.callbacks+=bayeslora.callbacks.TFB", "--model.init_args.backbone.adapter=a"]
    assert args[5:] == ["--ckpt_path=adapter", "--trainer.callbacks.tolerance", "0.1"]
    method = str(CONFIGS / "method" / "tfb_release.yaml")
    args = as_test(["--adapter", "a", "-c", str(config), "-c", method])  # which brings the callback itself
    adapter = ["--model.init_args.backbone.adapter=a", "--ckpt_path=adapter"]
    assert args == ["test", f"--config={config}", f"--config={method}", *adapter]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["-c", "quickstart"], "needs --adapter DIR"),
        (["--adapter", "somewhere"], "needs -c CONFIG"),
        (["--adapter", "a", "-c", "quickstart", "--ckpt_path", "last"], "given are --adapter a and --ckpt_path last"),
        (["--adapter", "no/such", "-c", "quickstart"], "no/such is no folder, and the adapter"),
    ],
)
def test_what_is_refused(args: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    here = ["--trainer.default_root_dir", str(tmp_path), "--trainer.accelerator=cpu"]
    assert main(["tfb", *args, *here]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.strip().splitlines()) == 1
