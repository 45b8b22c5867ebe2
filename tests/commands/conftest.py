"""What tests of commands share that run in the tests' own process."""

import os
from collections.abc import Iterator

import pytest
import torch


@pytest.fixture
def environment() -> Iterator[None]:
    """The command puts its process's environment right for good; the tests' comes back."""
    before, threads = dict(os.environ), torch.get_num_threads()
    yield
    os.environ.clear()
    os.environ.update(before)
    torch.set_num_threads(threads)
