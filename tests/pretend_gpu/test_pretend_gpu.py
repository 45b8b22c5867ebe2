"""Everything that is meant for a GPU runs on a pretend one, which refuses what CUDA refuses."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.pretend_gpu.library import missing

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.skipif(missing() is not None, reason=str(missing()))
GROUPS = ("methods", "posteriors", "laplace", "others", "benchmarks")


def run(*arguments: str) -> str:
    """What a process prints that pretends before it imports torch."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *arguments]
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-4000:]
    return result.stdout


@pytest.mark.slow
@pytest.mark.parametrize("group", GROUPS)
def test_it_runs_on_the_pretend_gpu(group: str) -> None:
    outcomes = [json.loads(line) for line in run("-m", "tests.pretend_gpu.scenarios", group).splitlines()]
    assert outcomes
    failed = {one["name"]: one["error"] for one in outcomes if one["error"]}
    assert not failed, "\n".join(f"=== {name}\n{error[-3000:]}" for name, error in failed.items())


REFUSALS = """
from tests.pretend_gpu import device
device.activate()
import torch

def refused(message, act):
    try:
        act()
    except (RuntimeError, TypeError) as error:
        assert message in str(error), error
    else:
        raise AssertionError(f"not refused: {message}")

cuda, cpu = torch.ones(4, 4, device="cuda"), torch.ones(4, 4)
assert cuda.is_cuda and torch.cuda.is_available() and str(cuda.device) == "cuda:0"
two = "at least two devices, cuda:0 and cpu"
for act in (lambda: cuda + cpu, lambda: cuda @ cpu, lambda: torch.cat([cuda, cpu]), lambda: cpu[cuda.long()]):
    refused(two, act)
refused("Expected a 'cuda' device type for generator", lambda: cuda.uniform_(generator=torch.Generator()))
refused("Expected a 'cpu' device type for generator", lambda: cpu.normal_(generator=torch.Generator("cuda")))
refused("numpy", lambda: cuda.numpy())
assert (cuda + torch.tensor(1.0)).sum().item() == 32.0  # a scalar on the CPU may be an operand of CUDA's
weight = torch.ones(4, 4, device="cuda", requires_grad=True)
with torch.autocast("cuda", torch.bfloat16):
    (weight @ cuda).sum().backward()
assert weight.grad.is_cuda and weight.grad.dtype == torch.float32 and weight.grad.tolist() == [[4.0] * 4] * 4
torch.use_deterministic_algorithms(True)
refused("deterministic", lambda: cuda.cumsum(0))
cuda.long().cumsum(0)

def counted(act):
    with device.recording() as record:
        act()
    return {name: n for name, n in record.operations.items()}, {kind: n for (kind, _, _), n in record.waits.items()}

assert counted(lambda: (cuda * 2)[0].t()) == ({"mul": 1}, {})
assert counted(lambda: cuda.sum().item()) == ({"sum": 1, "_local_scalar_dense": 1}, {"value": 1})
assert counted(lambda: torch.linalg.vector_norm(cuda)) == ({"linalg_vector_norm": 1}, {})  # a sum, no factorisation
assert counted(lambda: torch.linalg.cholesky(torch.eye(2, device="cuda")))[1]["linalg"] == 1
assert counted(lambda: cuda[cuda > 0])[1] == {"shape": 1}
assert counted(lambda: cpu.to("cuda"))[1] == {"to_gpu": 1}
assert counted(lambda: cpu.to("cuda", non_blocking=True))[1] == {"to_gpu": 1}  # from pageable memory: it waits
assert counted(lambda: cpu.pin_memory().to("cuda", non_blocking=True))[1] == {}
assert counted(lambda: cuda.cpu())[1] == {"to_cpu": 1}
assert counted(lambda: torch.tensor([1, 2], device="cuda"))[1] == {"to_gpu": 1}
assert counted(lambda: cpu + cpu) == ({}, {})
print("as CUDA")
"""


def test_it_refuses_what_cuda_refuses_and_counts_what_waits(tmp_path: Path) -> None:
    script = tmp_path / "refusals.py"
    script.write_text(REFUSALS)
    assert run(str(script)) == "as CUDA\n"


def test_without_a_compiler_it_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert missing() == "no g++ to compile the pretend GPU's device guard with"
