"""Laplace collects the rows of a batch on the device, and the host waits a few times for it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.pretend_gpu import device

ROOT = Path(__file__).resolve().parents[2]
MOST = 10  # waits of a batch, however many parameters there are
LEAST = 300  # operations of a batch: a forward pass of two layers and one pass back for each contrast
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

def counted(network, batches, *arguments, **options):
    batches = list(batches)
    with device.recording() as record:
        collect(network, batches, *arguments, **options)
    found.append((len(batches), record.number_of_operations, record.number_of_waits))

quiet()
fit.collect = counted
laplace = Laplace(precision=1.0, directory="memory")
runs.trainer(Path(tempfile.mkdtemp()), laplace).fit(plain(), datamodule=runs.questions())
batches, operations, waits = map(sum, zip(*found))
print("a batch", operations / batches, waits / batches)
"""


@pytest.mark.slow
def test_a_batch_is_on_the_device_and_waits_a_few_times() -> None:
    if (reason := device.missing()) is not None:
        pytest.skip(reason)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    result = subprocess.run([sys.executable, "-c", SCRIPT], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-3000:]
    (line,) = (line for line in result.stdout.splitlines() if line.startswith("a batch"))
    operations, waits = map(float, line.split()[2:])
    assert operations > LEAST
    assert 0 < waits <= MOST
