"""A run of the quickstart answers files of any length in flat memory, and the script that measures it runs."""

import re
from pathlib import Path

import pytest

from bayeslora.cli import main

SHORT = ["--trainer.max_steps=2", "--trainer.limit_test_batches=1", "--trainer.enable_progress_bar=false"]


@pytest.mark.slow
def test_a_quickstart_of_two_steps_answers_files_in_flat_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    import predict_memory

    run = tmp_path / "run"
    quickstart = ["-c", "quickstart", f"--trainer.default_root_dir={run}", "--data.eval_batch_size=8", *SHORT]
    assert main(["fit", *quickstart]) == 0
    assert main(["test", *quickstart]) == 0
    capsys.readouterr()
    predict_memory.main(["--run", str(run), "--sizes", "64", "640"])
    rows = re.findall(r"^\| (\d+) \| \d+ \| \d+ \| (\d+) \| ([+-]\d+) \|$", capsys.readouterr().out, re.MULTILINE)
    assert [row[0] for row in rows] == ["64", "640"]
    assert int(rows[1][2]) < 0.1 * int(rows[0][1])
