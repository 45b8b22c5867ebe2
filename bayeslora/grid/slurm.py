"""SLURM: the cells of a grid as job arrays, and one script that submits them in their order."""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bayeslora.errors import RunError, UsageError
from bayeslora.files import replacing
from bayeslora.grid.schedule import J, Job

_LONGEST = 1000  # cells of one array: SLURM's MaxArraySize is 1001 unless a site has changed it
_SUBMIT = "submit.sh"

_ARRAY = """\
#!/bin/bash
#SBATCH --job-name={name}
#SBATCH --array=0-{last}{limit}
#SBATCH --ntasks=1
#SBATCH --cpus-per-task={threads}
#SBATCH --output={folder}/{stem}-%a.log
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=B:TERM@120
{options}cd {directory} || exit 1
export CUDA_VISIBLE_DEVICES="${{CUDA_VISIBLE_DEVICES-}}"
keys=(
{keys})
exec {command} "${{keys[$SLURM_ARRAY_TASK_ID]}}"
"""
_HEAD = """\
#!/bin/bash
# Submits what is left: first those that train, then those that use a training, whatever became of the first.
set -euo pipefail
cd {folder}
if [ -s jobs.txt ] && squeue --noheader --jobs="$(paste -sd, jobs.txt)" 2>/dev/null | grep -q .; then
    echo "jobs $(paste -sd' ' jobs.txt) of this folder are still queued or running" >&2
    exit 1
fi
: > jobs.txt
"""
_FIRST = """\
job=$(sbatch --parsable {stem}.sbatch)
echo "${{job%%;*}}" | tee -a jobs.txt
"""
_THEN = """\
job=$(sbatch --parsable --dependency=afterany:"$trainings" {stem}.sbatch)
echo "${{job%%;*}}" | tee -a jobs.txt
"""


def write_arrays(
    folder: Path,
    cells: Sequence[J],
    needs: Mapping[J, J],
    command: Sequence[str],
    threads: int,
    jobs: int | None = None,
    options: Sequence[str] = (),
) -> Path:
    """Write the job arrays of some cells, and the script that submits them; what an earlier call wrote is replaced.

    A cell that uses another's training is in an array that starts when those of the trainings have ended, however they
    did: the cell itself looks whether the training is there, and does what is left of it.

    Args:
        folder: Where the scripts and SLURM's logs are.
        cells: The cells that are not done.
        needs: The cell whose training a cell uses.
        command: The arguments of the Python that run a cell, without its key, which comes last.
        threads: CPU threads of each.
        jobs: How many of an array may run at a time; None leaves it to SLURM.
        options: Further options of sbatch, such as ``--partition=gpu``, a line each.

    Returns:
        The script.
    """
    own = set(cells)
    second = [cell for cell in cells if needs.get(cell) in own]
    first = [cell for cell in cells if cell not in set(second)]
    arrays = {**_parts("trainings", first), **_parts("after", second)}
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.sbatch"):
        old.unlink()
    script = _HEAD.format(folder=shlex.quote(str(folder)))
    told = False
    for stem, part in arrays.items():
        limit, lines = f"%{jobs}" if jobs else "", "".join(f"#SBATCH {option}\n" for option in options)
        text = _array(folder, stem, part, command, threads=threads, limit=limit, options=lines)
        _write(folder / f"{stem}.sbatch", text)
        after = stem.startswith("after") and bool(first)
        if after and not told:
            script, told = script + "trainings=$(paste -sd: jobs.txt)\n", True
        script += (_THEN if after else _FIRST).format(stem=stem)
    _write(folder / _SUBMIT, script)
    return folder / _SUBMIT


def submit(script: Path) -> list[str]:
    """Run the script that submits the arrays of a folder.

    Args:
        script: What :func:`write_arrays` has written.

    Returns:
        The jobs' ids.

    Raises:
        UsageError: there is no sbatch on this machine.
        RunError: SLURM has refused an array, or jobs of this folder are still there.
    """
    if shutil.which("sbatch") is None:
        raise UsageError(f"there is no sbatch on this machine; run {script} on one that has it")
    ended = subprocess.run(["bash", str(script)], capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if ended.returncode:
        submitted = ", ".join(ended.stdout.split()) or "none"
        said = " ".join(ended.stderr.split())
        raise RunError(f"{script} ended with status {ended.returncode}: {said} (jobs submitted before: {submitted})")
    return ended.stdout.split()


def _array(folder: Path, stem: str, cells: Sequence[Job], command: Sequence[str], **values: Any) -> str:
    """The script of one array."""
    return _ARRAY.format(
        name=f"bayeslora-{folder.parent.name}",
        last=len(cells) - 1,
        folder=shlex.quote(str(folder)),
        stem=stem,
        directory=shlex.quote(str(Path.cwd())),  # where relative paths of the configurations begin
        keys="".join(f"{shlex.quote(cell.key)}\n" for cell in cells),  # not a file: what is queued keeps its own
        command=shlex.join([sys.executable, *command]),
        **values,
    )


def _parts(name: str, cells: Sequence[Job]) -> dict[str, Sequence[Job]]:
    return {f"{name}-{i}": cells[start : start + _LONGEST] for i, start in enumerate(range(0, len(cells), _LONGEST))}


def _write(file: Path, text: str) -> None:
    with replacing(file) as temporary:
        temporary.write_text(text)
