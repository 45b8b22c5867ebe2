"""The command line: help at once, one clear line for what cannot be done, and a path that is whole."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from bayeslora.cli import main
from tests.helpers.command_line import arguments, refused

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def run(data: Path) -> Path:
    """A finished run."""
    root = data.parent / "run"
    assert main(arguments("fit", root, data)) == 0
    return root


def test_help_imports_nothing_heavy() -> None:
    code = "import sys; from bayeslora.cli import main; main(['--help']); assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=ROOT)
    assert "compare" in done.stdout


def test_help_of_own_commands_imports_nothing_heavy() -> None:
    code = (
        "import sys, bayeslora.cli as cli\n"
        "for name in cli._OWN:\n"
        "    try: status = cli.main([name, '--help'])\n"
        "    except SystemExit as end: status = end.code\n"
        "    assert not status, name\n"
        "    assert not {'torch', 'lightning', 'pyarrow', 'transformers'} & set(sys.modules), name\n"
        "print(*cli._OWN)"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    named = done.stdout.splitlines()[-1].split()
    assert {"compare", "dynamics", "score", "ensemble"} <= set(named)
    assert all(f"bayeslora {name}" in done.stdout for name in named)


@pytest.mark.parametrize(
    ("option", "listed", "other"),
    [("--data.help", "JSONLDataModule", "Question "), ("--model.help", "CLoRAModule", "Optimisation")],
)
def test_help_lists_the_classes(option: str, listed: str, other: str, capsys: pytest.CaptureFixture) -> None:
    assert main(["fit", "-c", "quickstart", option]) == 0
    printed = capsys.readouterr().out
    assert f"  {listed} " in printed
    assert f"  {other}" not in printed
    assert ":class:" not in printed
    with pytest.raises(SystemExit):  # of one class: its options, by the parser
        main(["fit", option, listed])
    assert "--" in capsys.readouterr().out


def test_a_terminal_hears_at_once_that_it_loads(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    assert main(["score", "no/such.jsonl"]) != 0
    assert capsys.readouterr().err.startswith("bayeslora: loading ...\n")
    assert main(["score", "--help"]) == 0
    assert capsys.readouterr().err == ""


def test_fit_and_predict_end_with_what_they_wrote(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(arguments("fit", tmp_path, data)) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == f"written to {tmp_path}: checkpoints/last.ckpt, checkpoints/best.ckpt, posterior"
    assert main(arguments("predict", tmp_path, data)) == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"written to {tmp_path}: predict/predictions.parquet"


def test_a_run_leaves_what_the_documentation_says(run: Path) -> None:
    names = {str(path.relative_to(run)) for path in run.rglob("*")}
    wanted = ["fit-config.yaml", "run.json", "checkpoints/last.ckpt", "checkpoints/best.ckpt", "logs/fit/metrics.csv"]
    adapter = ["posterior/adapter_model.safetensors", "posterior/adapter_config.json", "posterior/posterior.json"]
    assert {*wanted, *adapter} <= names
    record = json.loads((run / "run.json").read_text())
    assert record["schema"] == 1
    assert record["method"] == "mle"
    assert record["labels"] == 40
    assert record["versions"]["torch"] == torch.__version__


def test_test_takes_the_last_checkpoint_and_its_metrics_follow_from_the_file(run: Path, data: Path, capsys) -> None:
    from bayeslora.metrics.evaluate import evaluate
    from bayeslora.results.prediction_file import read_predictions

    assert main(arguments("test", run, data)) == 0
    assert "last.ckpt" in capsys.readouterr().out
    written = json.loads((run / "test" / "metrics.json").read_text())
    found = read_predictions(run / "test" / "predictions.parquet")
    assert json.loads(json.dumps(evaluate(found.datasets, found.method, found.seed))) == written
    assert sum(v["n"] for v in written["datasets"].values()) == 40
    refused(capsys, arguments("test", run, data), str(run / "test"), "--overwrite")
    assert main(arguments("test", run, data, "--overwrite")) == 0
    assert json.loads((run / "test" / "metrics.json").read_text()) == written


def test_base_and_a_foreign_adapter_are_tested_without_training(run: Path, data: Path, tmp_path: Path) -> None:
    assert main(arguments("test", tmp_path / "base", data, "--ckpt_path=base")) == 0
    adapter = f"--model.backbone.adapter={run / 'posterior'}"
    assert main(arguments("test", tmp_path / "adapter", data, adapter)) == 0
    assert main(arguments("test", tmp_path / "same", data, f"--ckpt_path={run / 'checkpoints' / 'last.ckpt'}")) == 0
    metrics = {name: json.loads((tmp_path / name / "test" / "metrics.json").read_text()) for name in _RUNS}
    assert metrics["base"]["method"] == "base"
    assert metrics["adapter"]["datasets"] == metrics["same"]["datasets"] != metrics["base"]["datasets"]


_RUNS = ("base", "adapter", "same")


def test_command_line_beats_yaml_beats_checkpoint(run: Path, data: Path, tmp_path: Path, capsys) -> None:
    checkpoint = f"--ckpt_path={run / 'checkpoints' / 'last.ckpt'}"
    options = [f"--trainer.default_root_dir={tmp_path}", "--model.learning_rate=0.5", checkpoint]
    with pytest.raises(SystemExit):
        main(["fit", *options, "--print_config"])
    printed = capsys.readouterr().out
    assert "learning_rate: 0.5" in printed
    assert str(data) in printed  # the run's own configuration stands behind the options
    overlay = tmp_path / "overlay.yaml"
    overlay.write_text("model: {class_path: LoRAModule, init_args: {learning_rate: 0.25}}\n")
    with pytest.raises(SystemExit):
        main(["fit", "-c", str(overlay), checkpoint, "--print_config"])
    printed = capsys.readouterr().out
    assert "learning_rate: 0.25" in printed
    assert "pretrained: embedded" in printed


def test_what_cannot_be_done_is_one_line(run: Path, data: Path, tmp_path: Path, capsys) -> None:
    def refuse(stage: str, *options: str, parts: tuple[str, ...], root: Path = tmp_path / "new") -> None:
        refused(capsys, arguments(stage, root, data, *options), *parts)
        assert root == run or not (root / "checkpoints").exists()

    refused(capsys, ["trian"], "trian", "fit, test")
    refuse("fit", "--data=NoSuchDataModule", parts=("NoSuchDataModule", "ARCDataModule"))
    refuse("fit", "--data.protocol=mine", parts=("mine", "default"))
    refuse("fit", "--model.backbone.quantization=3bit", parts=("3bit", "8bit"))
    refuse("fit", "--model.backbone.readout=generate", parts=("generate", "label_token"))
    refuse("fit", "--model.learning_rate=fast", parts=("learning_rate is fast", "float"))
    refuse("fit", "--model.no_such_option=1", parts=("LoRAModule has no option 'no_such_option'",))
    refuse("fit", f"--data.path={tmp_path / 'nothing'}", parts=("nothing",))
    refuse("fit", parts=(str(run), "--ckpt_path last", "--overwrite"), root=run)
    refuse("test", parts=("no checkpoint", "bayeslora fit"))
    refuse("test", "--ckpt_path=/no/such/file.ckpt", parts=("/no/such/file.ckpt",))
    refuse("fit", "--model.backbone.pretrained=no/such-model", parts=("no/such-model", "HF_HUB_OFFLINE"))
    if not torch.cuda.is_available():
        refuse("fit", "--trainer.accelerator=gpu", parts=("gpu", "--trainer.accelerator cpu"))
    last = run / "checkpoints" / "last.ckpt"
    cut = tmp_path / "cut.ckpt"
    cut.write_bytes(last.read_bytes()[:5000])
    refuse("test", f"--ckpt_path={cut}", parts=("cut.ckpt", "damaged"))
    refuse("test", f"--ckpt_path={last}", "--model.lora.r=4", parts=("shape", "lora.r"))
    refuse("test", f"--ckpt_path={last}", "--model.lora.target_modules=[q_proj]", parts=("target_modules",))


def test_a_checkpoint_of_another_base_is_refused(run: Path, data: Path, tmp_path: Path, capsys) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from bayeslora.models.pretrained import resolve_pretrained

    other = AutoModelForCausalLM.from_pretrained(resolve_pretrained("embedded"))
    with torch.no_grad():
        other.model.norm.weight.add_(0.5)
    other.save_pretrained(tmp_path / "other")
    AutoTokenizer.from_pretrained(resolve_pretrained("embedded")).save_pretrained(tmp_path / "other")
    args = arguments("test", tmp_path / "new", data, f"--model.backbone.pretrained={tmp_path / 'other'}")
    refused(capsys, [*args, f"--ckpt_path={run / 'checkpoints' / 'last.ckpt'}"], "another base", "backbone.pretrained")


def test_nan_in_the_loss_stops_the_run_and_names_the_batch(data: Path, tmp_path: Path, capsys) -> None:
    args = arguments("fit", tmp_path, data, "--model.learning_rate=1e30", "--trainer.max_epochs=3", "--model.warmup=0")
    refused(capsys, args, "not finite", "train", "rows", status=1)


@pytest.mark.parametrize(
    "there, accelerator, bfloat16, wanted",
    [
        (True, "auto", True, "bf16-mixed"),
        (True, "gpu", False, "16-mixed"),  # cards from before Ampere
        (True, "cpu", True, None),
        (False, "auto", False, None),
    ],
)
def test_precision_on_a_gpu_is_its_own(
    there: bool, accelerator: str, bfloat16: bool, wanted: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from bayeslora.commands.gpu import gpu_precision

    monkeypatch.setattr(torch.cuda, "is_available", lambda: there)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: bfloat16)
    assert gpu_precision(accelerator) == wanted


def test_deterministic_runs_keep_the_workspaces_that_were_chosen(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Matrix products repeat their bits on a GPU only with workspaces of a fixed size: Lightning's, or the user's."""
    try:
        for name, chosen, wanted in (("lightning", None, ":4096:8"), ("own", ":16:8", ":16:8")):
            monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
            if chosen is not None:
                monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", chosen)
            options = ["--trainer.deterministic=true", "--trainer.fast_dev_run=1"]
            assert main(arguments("fit", tmp_path / name, data, *options)) == 0
            assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == wanted
    finally:
        torch.use_deterministic_algorithms(False)
