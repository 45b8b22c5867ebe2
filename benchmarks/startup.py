"""CPU time of the command line before it does anything: user and system time of child processes, median of several.

python benchmarks/startup.py [--runs 5]
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
from pathlib import Path

from measure import machine, spread

ROOT = Path(__file__).resolve().parent.parent
COMMAND = [sys.executable, "cli.py"]
CASES = {
    "python -c pass": ([sys.executable, "-c", "pass"], None),
    'python -c "import lightning.pytorch.cli"': ([sys.executable, "-c", "import lightning.pytorch.cli"], None),
    "bayeslora --help": ([*COMMAND, "--help"], 1.0),
    "bayeslora fit -c quickstart --print_config": (
        [*COMMAND, "fit", "-c", "quickstart", "--print_config"],
        5.0,
    ),
}


def cpu_seconds(command: list[str]) -> float:
    """User and system time of a command and its children."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


def main() -> None:
    """Run the script: see its first lines."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=5, help="how often each command is run, after one run to warm up")
    runs = parser.parse_args().runs
    print(machine())
    print(f"CPU seconds (user + system), median [min, max] of {runs} runs, files warm")
    times: dict[str, list[float]] = {name: [] for name in CASES}
    for turn in range(runs + 1):
        for name, (command, _) in CASES.items():
            seconds = cpu_seconds(command)
            if turn:
                times[name].append(seconds)
    for name, (_, target) in CASES.items():
        goal = f"  (target < {target:.0f})" if target else ""
        print(f"  {name}: {spread(times[name])}{goal}")


if __name__ == "__main__":
    main()
