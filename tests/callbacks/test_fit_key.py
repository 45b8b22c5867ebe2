"""A fit that was kept is used again only where everything that it depends on is equal."""

import json
from pathlib import Path

import pytest

from bayeslora.callbacks.fit_key import fit_key
from bayeslora.cli import main
from bayeslora.posteriors.state import load_posterior
from tests.helpers.command_line import FAST

CHANGES = {
    "shots": ["--data.shots=2"],
    "length": ["--data.max_length=24"],
    "scale": ["--model.lora.alpha=64"],
    "precision": ["--trainer.precision=bf16-mixed"],
    "quantisation": ["--model.backbone.quantization=8bit"],
    "batches": ["--data.eval_batch_size=5"],
}


def test_a_key_is_the_same_in_every_process() -> None:
    """Sets, as peft's configuration holds them, have an order of their own in each process."""
    names = {f"layer{i}.v_proj" for i in range(50)}
    assert fit_key({}, {"target_modules": names}) == fit_key({}, {"target_modules": sorted(names)})


def _test(root: Path, data: Path, method: str, *options: str) -> None:
    args = [
        "--model=LoRAModule",
        "--model.lora.r=2",
        "--data=JSONLDataModule",
        f"--data.path={data}",
        "--data.labels=40",
    ]
    path = f"--trainer.callbacks+=bayeslora.callbacks.{method}"
    small = ["--trainer.callbacks.samples=2", "--trainer.callbacks.anchors=16"] if method == "TFB" else []
    root_dir = f"--trainer.default_root_dir={root}"
    for stage in ("fit", "test") if not (root / "checkpoints").exists() else ("test",):
        fit = [] if stage == "fit" else [path, *small, "--overwrite"]
        assert main([stage, *args, *FAST, root_dir, *fit, *options]) == 0


def _keys(root: Path, method: str) -> set[str]:
    if method == "Laplace":
        return {folder.name for folder in (root / "laplace").iterdir()}
    return {json.dumps(load_posterior(root / "posterior" / "tfb").record["options"], sort_keys=True)}


@pytest.mark.parametrize("method", ["Laplace", "TFB"])
@pytest.mark.parametrize("change", list(CHANGES))
def test_another_run_does_not_meet_a_kept_fit(method: str, change: str, data: Path, tmp_path: Path) -> None:
    _test(tmp_path, data, method)
    before = _keys(tmp_path, method)
    _test(tmp_path, data, method)
    assert _keys(tmp_path, method) == before  # nothing has changed
    _test(tmp_path, data, method, *CHANGES[change])
    assert _keys(tmp_path, method) != before
