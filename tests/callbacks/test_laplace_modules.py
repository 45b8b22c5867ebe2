"""Laplace on modules that train more than weights, and what it takes the initial weights to be."""

from pathlib import Path

import pytest
import torch

from bayeslora import Backbone, LoRA, LoRAModule
from bayeslora.callbacks.laplace import Laplace
from bayeslora.callbacks.laplace_network import initial_weights, network_of
from bayeslora.lightning_modules.blob import BLoBModule
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


def test_initial_weights_do_not_depend_on_the_dtype_a_module_was_converted_to() -> None:
    module = LoRAModule(Backbone("embedded"), SMALL, seed=3)
    module.configure_model()
    start = {name: value.detach().clone() for name, value in module.trainable().items()}
    for convert in (torch.nn.Module.float, torch.nn.Module.double):
        convert(module)
        found = initial_weights(module, network_of(module, None, None), None)
        assert found is not None
        assert all(torch.equal(value.float(), start[name]) for name, value in found.items())
