"""The benchmarks run, and their opponent does the same work as we do."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
BENCHMARKS = ROOT / "benchmarks"
GUARDED = """
import runpy, sys
sys.path.insert(0, sys.argv[1])
sys.argv = sys.argv[2:]
runpy.run_path(sys.argv[0], run_name="__main__")
print("imported:", sorted({"datasets", "pyarrow", "jsonargparse"} & set(sys.modules)))
"""


def run(*arguments: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    result = subprocess.run([sys.executable, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.slow
def test_the_gpu_script_runs_tiny_and_imports_no_data_libraries():
    output = run("-c", GUARDED, str(BENCHMARKS), str(BENCHMARKS / "gpu_7b.py"), "--tiny")
    assert output.count("throughput, ours / plain:") == 3
    assert output.count("throughput, one pass / passes:") == 3
    assert output.endswith("imported: []\n")


@pytest.mark.slow
def test_fit_step_runs_tiny():
    data = os.environ.get("BAYESLORA_DATA", str(ROOT.parent / "shared" / "data"))
    if not Path(data).exists():
        pytest.skip("no benchmark data; set BAYESLORA_DATA")
    script = str(BENCHMARKS / "fit_step.py")
    output = run(script, "--tiny", "--data-dir", data, "--rounds", "1", "--steps", "1")
    for line in ("throughput, ours / plain:", "peak memory, ours / plain:", "pass with hashed dropout"):
        assert output.count(line) == 1


def test_the_machine_is_described_where_a_package_is_missing(monkeypatch):
    """bitsandbytes need not be there: most benchmarks do not quantise."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import measure

    monkeypatch.setattr(measure, "PACKAGES", ("torch", "no-such-package"))
    assert measure.machine().endswith(f"torch {torch.__version__}, no-such-package not installed")


def test_the_plain_loop_trains_as_we_do(llama, monkeypatch):
    """On one batch, both sides end with the same weights, so that what is timed is the same work."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    from contest import fit, loader_of
    from plain_loop import PlainLoop
    from transformers import AutoModelForCausalLM

    from bayeslora.datamodules.encode import Encoded
    from bayeslora.lightning_modules.lora import LoRAModule
    from bayeslora.models.loading import Backbone, LoRA
    from bayeslora.models.sites import plain_name

    lora = LoRA(r=4, alpha=8, target_modules=["q_proj", "v_proj"])
    answers = [(3, 4, 5), (3, 4), (3, 4, 5, 6)]
    rows = [torch.arange(10 + 20 * i, 16 + 23 * i).tolist() for i in range(len(answers))]
    encoded = [Encoded((row,), None, ids, i % 2) for i, (row, ids) in enumerate(zip(rows, answers, strict=True))]
    steps = 20  # one of them warms up
    module = LoRAModule(Backbone(llama), lora, learning_rate=1e-3)
    module.configure_model()
    base = AutoModelForCausalLM.from_pretrained(llama)
    plain = PlainLoop(base, lora, encoded, len(encoded), steps, torch.device("cpu"), learning_rate=1e-3)
    theirs = {plain_name(name): p for name, p in plain.network.named_parameters() if p.requires_grad}
    start = {name: p.detach().clone() for name, p in module.trainable().items()}
    with torch.no_grad():
        for name, parameter in theirs.items():
            parameter.copy_(start[name])

    plain.run(steps)
    fit(module, steps, torch.device("cpu"), [], train_dataloaders=loader_of(encoded, len(encoded)))

    ours = module.trainable()
    assert theirs.keys() == ours.keys()
    for name, parameter in theirs.items():
        torch.testing.assert_close(parameter, ours[name], atol=1e-5, rtol=1e-4)
        assert not torch.equal(parameter, start[name])
