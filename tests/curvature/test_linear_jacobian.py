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


def test_what_changes_an_output_in_place_is_differentiated_too() -> None:
    torch.manual_seed(0)
    module, x = nn.Sequential(nn.Linear(4, 8), nn.ReLU(inplace=True), nn.Linear(8, 3)), torch.randn(5, 4)
    _, found = linear_jacobian(module, module, x, ["0.weight", "0.bias"])
    wanted = by_autograd(nn.Sequential(module[0], nn.ReLU(), module[2]), x)
    for name, value in found.items():
        torch.testing.assert_close(value, wanted[name])


@pytest.mark.parametrize("cut", [torch.no_grad(), torch.inference_mode()], ids=["no_grad", "inference_mode"])
def test_logits_without_a_gradient_are_refused(cut: torch.no_grad) -> None:
    module, x = network(tied=False), torch.ones(2, 4)
    with pytest.raises(UsageError, match=r"no gradient by 0, .* leave torch.no_grad"):
        linear_jacobian(module, cut(lambda batch: module(batch)), x, ["0.weight"])
    with pytest.raises(UsageError, match=r"no gradient by 0.weight, .* detach out of it"):
        linear_jacobian(module, lambda batch: module(batch).detach(), x, ["0.weight"])
