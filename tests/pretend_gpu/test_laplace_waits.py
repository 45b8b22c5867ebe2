"""How often the host waits for the device while Laplace collects the rows of a batch."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.pretend_gpu import device

ROOT = Path(__file__).resolve().parents[2]
MOST = 10  # a batch, however many parameters there are
SCRIPT = """
from tests.pretend_gpu import device
device.activate()
import tempfile
from pathlib import Path
from bayeslora.callbacks.laplace import Laplace
from bayeslora.curvature import fit
from tests.pretend_gpu import runs
from tests.pretend_gpu.scenarios import plain, quiet

collect, found = fit.collect, []

def counted(network, batches, *arguments):
    batches = list(batches)
    with device.recording() as record:
        collect(network, batches, *arguments)
    found.append((len(batches), record.number_of_waits))

quiet()
fit.collect = counted
laplace = Laplace(precision=1.0, directory="memory")
runs.trainer(Path(tempfile.mkdtemp()), laplace).fit(plain(), datamodule=runs.questions())
print("waits", sum(waits for _, waits in found) / sum(batches for batches, _ in found))
"""


@pytest.mark.slow
def test_a_batch_waits_a_few_times() -> None:
    if (reason := device.missing()) is not None:
        pytest.skip(reason)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    result = subprocess.run([sys.executable, "-c", SCRIPT], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-3000:]
    (line,) = (line for line in result.stdout.splitlines() if line.startswith("waits"))
    assert float(line.split()[1]) <= MOST
