"""Shared fixtures: tiny random models, a file of questions, and a run that was trained on them."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from pathlib import Path

import pytest

from bayeslora.cli import main
from tests.helpers.command_line import arguments
from tests.helpers.models import save_llama, save_roberta
from tests.helpers.runs import questions


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Folder of a tiny random Llama."""
    return save_llama(tmp_path_factory.mktemp("models") / "llama")


@pytest.fixture(scope="session")
def roberta(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Folder of a tiny random RoBERTa."""
    return save_roberta(tmp_path_factory.mktemp("models") / "roberta")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small benchmark in JSONL, of 120 training questions, in a folder that the module's tests share."""
    return questions(tmp_path_factory.mktemp("module") / "data")


@pytest.fixture(scope="module")
def finished(data: Path) -> Path:
    """The folder of a finished run, which tests leave as it is."""
    root = data.parent / "finished"
    assert main(arguments("fit", root, data)) == 0
    return root
