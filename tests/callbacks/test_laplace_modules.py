"""Laplace on modules that train more than weights, and what it takes the initial weights to be."""

from pathlib import Path

import pytest
import torch

from bayeslora import Backbone, LoRA, LoRAModule
from bayeslora.callbacks.laplace import Laplace
from bayeslora.callbacks.laplace_network import initial_weights, member_network, network_of
from bayeslora.lightning_modules.blob import BLoBModule
from bayeslora.lightning_modules.c_lora import CLoRAModule
from bayeslora.lightning_modules.ensemble import LoRAEnsemble
from bayeslora.lightning_modules.multiple_choice import MultipleChoiceModule
from bayeslora.lightning_modules.scalabl import ScalaBLModule
from bayeslora.posteriors.laplace.full import FullPosterior
from tests.helpers.ensembles import datamodule, trainer

SMALL = LoRA(r=4, target_modules=["q_proj", "v_proj"])


@pytest.mark.parametrize("mean", ["trained", "refit"])
def test_a_variational_module_has_a_gaussian_over_its_means(data: Path, tmp_path: Path, mean: str) -> None:
    laplace = Laplace(precision=5.0, mean=mean, directory="memory")
    module = BLoBModule(Backbone("embedded"), SMALL, learning_rate=5e-3, seed=1)
    made = trainer(tmp_path, max_epochs=1, callbacks=[laplace])
    made.fit(module, datamodule=datamodule(data))
    assert isinstance(laplace.posterior, FullPosterior)
    assert laplace.posterior.mean().keys() == module.weight_sets()[0].keys()
    assert not any(name.endswith("std_root") for name in laplace.posterior.mean())
    made.test(module, datamodule=datamodule(data), verbose=False)


@pytest.mark.parametrize("method", [LoRAModule, BLoBModule, CLoRAModule, ScalaBLModule])
def test_initial_weights_are_those_that_training_begins_with(method: type[MultipleChoiceModule]) -> None:
    """Also where a method rotates LoRA's A before it trains, or trains more than LoRA."""
    module = method(Backbone("embedded"), SMALL, seed=3)
    module.configure_model()
    found = initial_weights(module, network_of(module, None, None), None)
    assert found is not None
    assert found.keys() == module.weight_sets()[0].keys()
    assert all(torch.equal(found[name], value) for name, value in module.weight_sets()[0].items())


@pytest.mark.parametrize("members", [None, 2])
def test_initial_weights_of_an_encoder_hold_those_of_its_head(roberta: str, members: int | None) -> None:
    backbone, lora = Backbone(roberta, readout="head"), LoRA(r=2, target_modules=["query"])
    module = LoRAModule(backbone, lora, seed=3) if members is None else LoRAEnsemble(backbone, lora, members, seed=3)
    module.configure_model()
    for place, begun in enumerate(module.weight_sets()):
        at = None if members is None else place
        with member_network(module, at):
            found = initial_weights(module, network_of(module, None, None), at)
        assert found is not None
        assert all(torch.equal(found[name], value) for name, value in begun.items())
        assert any(value.any() for name, value in found.items() if ".lora_" not in name)


def test_initial_weights_do_not_depend_on_the_dtype_a_module_was_converted_to() -> None:
    module = LoRAModule(Backbone("embedded"), SMALL, seed=3)
    module.configure_model()
    start = {name: value.detach().clone() for name, value in module.trainable().items()}
    for convert in (torch.nn.Module.float, torch.nn.Module.double):
        convert(module)
        found = initial_weights(module, network_of(module, None, None), None)
        assert found is not None
        assert all(torch.equal(value.float(), start[name]) for name, value in found.items())
