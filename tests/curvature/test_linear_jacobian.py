"""Jacobians of any module by its linear layers are those of automatic differentiation."""

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, jacrev

from bayeslora.curvature.linear_jacobian import linear_jacobian
from bayeslora.errors import UsageError


def network(tied: bool) -> nn.Sequential:
    torch.manual_seed(0)
    first, second = nn.Linear(4, 4), nn.Linear(4, 4)
    if tied:
        second.weight = first.weight
    return nn.Sequential(first, nn.Tanh(), second, nn.Tanh(), nn.Linear(4, 3))


def by_autograd(module: nn.Module, x: Tensor) -> dict[str, Tensor]:
    def contrasts(parameters: dict[str, Tensor]) -> Tensor:
        logits = functional_call(module, parameters, (x,))
        return logits[:, 1:] - logits[:, :1]

    return jacrev(contrasts)({name: p.detach() for name, p in module.named_parameters()})


@pytest.mark.parametrize("tied", [False, True], ids=["apart", "tied"])
def test_a_weight_that_layers_share_counts_at_each_of_them(tied: bool) -> None:
    module, x = network(tied), torch.randn(5, 4)
    names = [name for name, _ in module.named_parameters()]
    _, found = linear_jacobian(module, module, x, names)
    for name, wanted in by_autograd(module, x).items():
        torch.testing.assert_close(found[name], wanted)


def test_batches_made_in_inference_mode_are_differentiated() -> None:
    """Lightning tests in inference mode, in which no gradient may flow through what a loader makes."""
    module = network(tied=False)
    with torch.inference_mode():
        batch = {"x": torch.ones(2, 4)}
        _, found = linear_jacobian(module, lambda batch: module(batch["x"]), batch, ["0.weight"])
    torch.testing.assert_close(found["0.weight"], by_autograd(module, torch.ones(2, 4))["0.weight"])


def test_a_weight_shared_with_another_kind_of_layer_is_refused() -> None:
    module = nn.ModuleDict({"words": nn.Embedding(6, 4), "head": nn.Linear(4, 6, bias=False)})
    module["head"].weight = module["words"].weight

    def logits(ids: Tensor) -> Tensor:
        return module["head"](module["words"](ids))

    with pytest.raises(UsageError, match=r"not by words.weight \(Embedding\); freeze them"):
        linear_jacobian(module, logits, torch.tensor([1, 2]), ["words.weight"])
