"""What a decoder layer dispatches beyond plain peft, and how often a step waits, does not grow."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.pretend_gpu.library import missing

ROOT = Path(__file__).resolve().parents[2]
# By sites and method: operations of a layer beyond peft's, there and back, and waits of a step. Follow the code down.
MOST = {
    "q, v": {
        "LoRA": (-2, 2),
        "keyed dropout": (10, 2),
        "MC dropout, ten in one pass": (12, 2),
        "BLoB": (38, 2),
        "ScalaBL": (18, 2),
        "IVON": (22, 2),
        "C-LoRA": (89, 2),
        "ensemble of 5": (2, 3),
        "bank of 5 weight sets": (2, 2),
    },
    "all": {
        "LoRA": (-2, 2),
        "keyed dropout": (28, 2),
        "MC dropout, ten in one pass": (25, 2),
        "BLoB": (110, 2),
        "ScalaBL": (68, 2),
        "IVON": (82, 2),
        "C-LoRA": (289, 2),
        "ensemble of 5": (12, 3),
        "bank of 5 weight sets": (2, 2),
    },
}


@pytest.mark.slow
@pytest.mark.skipif(missing() is not None, reason=str(missing()))
def test_no_layer_dispatches_and_no_step_waits_more_than_before() -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "benchmarks/launches.py"]
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-3000:]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in result.stdout.splitlines() if line[:1] == "|"]
    cells = ((name, sites, there, back, waits) for name, sites, there, back, *_, waits, _ in rows[2:])
    counts = {(sites, name): (float(there), float(back or 0), waits) for name, sites, there, back, waits in cells}
    for sites, methods in MOST.items():
        for name, (operations, waits) in methods.items():
            there, back, waited = counts[sites, name]
            plain_there, plain_back, _ = counts[sites, "peft"]
            beyond = there - plain_there + (back - plain_back if back else 0)
            assert beyond <= operations, (sites, name)
            assert int(waited) <= waits, (sites, name)
