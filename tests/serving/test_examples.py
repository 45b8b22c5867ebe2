"""The examples of public docstrings run as they are printed."""

import doctest
from pathlib import Path

import lightning as L
import pytest

from bayeslora import LoRAModule, Predictor
from bayeslora.callbacks.run_folder import RunFolder
from bayeslora.datamodules import SyntheticDataModule
from bayeslora.models.loading import LoRA
from bayeslora.serving.keep import KeepForServing


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("run")
    trainer = L.Trainer(
        max_steps=1, accelerator="cpu", default_root_dir=root, callbacks=[RunFolder(), KeepForServing()], logger=False,
        enable_checkpointing=False, enable_progress_bar=False, num_sanity_val_steps=0, limit_val_batches=0,
    )  # fmt: skip
    data = SyntheticDataModule(labels=10, batch_size=4, max_test=4)
    module = LoRAModule(lora=LoRA(r=2, target_modules=["q_proj"]))
    trainer.fit(module, datamodule=data)
    trainer.test(module, datamodule=data, verbose=False)
    return root


def test_examples_of_the_predictor(run: Path) -> None:
    names = {"Predictor": Predictor, "test_a_run": lambda: run}
    examples = [found for found in doctest.DocTestFinder().find(Predictor, globs=names) if found.examples]
    assert examples
    for example in examples:
        assert doctest.DocTestRunner().run(example).failed == 0, example.name
