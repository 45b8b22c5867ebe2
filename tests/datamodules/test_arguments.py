"""Every DataModule takes the arguments that the command line links, by name, and is built from a configuration."""

import inspect
import subprocess
import sys
from typing import Any

import lightning
import pytest
from jsonargparse import ArgumentParser

import bayeslora.datamodules
from bayeslora.datamodules import MultipleChoiceDataModule

SHARED = {
    "data_dir",
    "protocol",
    "labels",
    "ood",
    "batch_size",
    "eval_batch_size",
    "max_length",
    "max_test",
    "seed",
    "tokenizer",
    "readout",
    "num_workers",
}
MODULES = [name for name in bayeslora.datamodules.__all__ if name.endswith("DataModule")]
OWN = {
    "ARCDataModule": {"config": "ARC-Challenge"},
    "JSONLDataModule": {"path": "."},
    "MMLUDataModule": {"subjects": ["law"]},
    "WinoGrandeDataModule": {"size": "m"},
}


@pytest.mark.parametrize("name", [name for name in MODULES if name != "MultipleChoiceDataModule"])
def test_shared_arguments_reach_the_module(name: str, tmp_path: Any) -> None:
    (tmp_path / "test.jsonl").touch()
    own = {"path": str(tmp_path)} if name == "JSONLDataModule" else OWN.get(name, {})
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(lightning.LightningDataModule, "data")
    given = {"seed": 7, "tokenizer": "somewhere", "readout": "head", "ood": ["obqa"], "batch_size": 3, "labels": 9}
    given |= {"ood": ["arc_easy"]} if name == "OpenBookQADataModule" else {}
    given |= {"data_dir": "d", "protocol": "default", "eval_batch_size": 5, "max_length": 99, "max_test": 8}
    given |= {"num_workers": 1}
    assert set(given) == SHARED
    path = f"bayeslora.datamodules.{name}"
    config = parser.parse_object({"data": {"class_path": path, "init_args": {**own, **given}}})
    data = parser.instantiate_classes(config).data
    assert isinstance(data, MultipleChoiceDataModule)
    assert (data.seed, data.tokenizer_name, data.readout, data.batch_size, data.labels) == (
        7,
        "somewhere",
        "head",
        3,
        9,
    )
    assert (data.data_dir, data.protocol.name, data.eval_batch_size, data.max_length) == ("d", "default", 5, 99)
    assert data.max_test == 8
    assert (data.num_workers, data.test_names[1:]) == (1, given["ood"])


def test_shared_arguments_have_defaults() -> None:
    parameters = inspect.signature(MultipleChoiceDataModule).parameters
    assert set(parameters) >= SHARED
    assert all(parameters[name].default is not inspect.Parameter.empty for name in SHARED)
    assert parameters["tokenizer"].default is None  # the model's


def test_importing_the_modules_leaves_heavy_libraries_alone() -> None:
    names, heavy = ", ".join(MODULES), {"transformers", "datasets", "peft", "bitsandbytes", "pyarrow"}
    code = (
        "import sys, lightning; before = set(sys.modules); "  # lightning may bring some of them itself
        f"from bayeslora.datamodules import {names}; print({heavy} & (set(sys.modules) - before))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
