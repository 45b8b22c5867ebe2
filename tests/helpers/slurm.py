"""A stand-in for SLURM: a small script in the place of ``sbatch`` that runs an array at once."""

import os
from pathlib import Path

import pytest

from tools.layout import ROOT

SBATCH = """#!/bin/bash
# Runs the tasks of an array one after another, as SLURM's own batch script would be, and says the job's id.
script="${@: -1}"
job=$(($(cat "$JOBS" 2>/dev/null | wc -l) + 100))
echo "$job $*" >> "$JOBS"
last=$(sed -n 's/^#SBATCH --array=0-\\([0-9]*\\).*/\\1/p' "$script")
for task in $(seq 0 "$last"); do
    SLURM_JOB_ID=$job SLURM_ARRAY_TASK_ID=$task SLURM_NTASKS=4 SLURM_PROCID=3 CUDA_VISIBLE_DEVICES=7 \\
        bash "$script" >> "$JOBS.log" 2>&1
done
echo "$job;cluster"
"""


def program(folder: Path, name: str, text: str) -> None:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(text)
    (folder / name).chmod(0o755)


def slurm_in(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put ``sbatch`` and ``squeue`` into ``PATH``; the file with the jobs that ``sbatch`` was given."""
    program(folder / "bin", "sbatch", SBATCH)
    program(folder / "bin", "squeue", "#!/bin/bash\n")
    monkeypatch.setenv("PATH", f"{folder / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setenv("JOBS", str(folder / "jobs"))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    return folder / "jobs"
