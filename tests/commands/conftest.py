"""Questions, and a run that was trained on them, for the tests of the commands."""

from pathlib import Path

import pytest

from bayeslora.cli import main
from tests.helpers.command_line import arguments
from tests.helpers.runs import questions


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of questions."""
    return questions(tmp_path_factory.mktemp("commands") / "data")


@pytest.fixture(scope="module")
def finished(data: Path) -> Path:
    """The folder of a finished run, which tests leave as it is."""
    root = data.parent / "finished"
    assert main(arguments("fit", root, data)) == 0
    return root
