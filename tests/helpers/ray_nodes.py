"""A Ray cluster of two nodes, which ``ray.cluster_utils`` plays on this machine."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from tools.layout import ROOT


@contextmanager
def two_nodes() -> Iterator[Any]:
    """Two CPUs each; the second has a GPU that is not there, for which Ray only keeps books."""
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT))
        patch.setenv("RAY_AUTH_MODE", "disabled")
        patch.setenv("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
        made = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
        made.add_node(num_cpus=2, num_gpus=1)
        yield made
        made.shutdown()
