"""Weights written in place are those that answer, and a module that was evaluated is as it was."""

import pytest
import torch
from torch import nn

from bayeslora.models.in_place import evaluation_mode, restored_weights, write_weights


def test_written_weights_answer_although_autocast_has_cached_those_of_before() -> None:
    layer, features = nn.Linear(4, 3, bias=False), torch.ones(1, 4)
    parameters = dict(layer.named_parameters())
    with torch.autocast("cpu", torch.bfloat16, cache_enabled=True):
        before = layer(features)
        with restored_weights(parameters):
            write_weights(parameters, {"weight": torch.full((3, 4), 2.0)})
            assert (layer(features) == 8).all()
        assert torch.equal(layer(features), before)


class _Stopped(Exception):
    pass


def test_modes_and_weights_come_back_after_an_error() -> None:
    network = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Dropout(0.5)).train()
    network[1].eval()  # frozen
    weights = {name: value.detach().clone() for name, value in network.named_parameters()}

    def stopped() -> None:
        with evaluation_mode(network), restored_weights(dict(network.named_parameters())):
            assert not any(part.training for part in network.modules())
            write_weights(dict(network.named_parameters()), {"0.weight": torch.zeros(2, 2)})
            raise _Stopped

    with pytest.raises(_Stopped):
        stopped()
    assert [part.training for part in network.modules()] == [True, True, False, True]
    assert all(torch.equal(value, weights[name]) for name, value in network.named_parameters())
