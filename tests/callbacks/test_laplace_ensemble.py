"""Laplace on every member of an ensemble: the mixture is that of the members fitted alone."""

from pathlib import Path

import torch

from bayeslora.callbacks.laplace import Laplace
from bayeslora.lightning_modules.ensemble import LoRAEnsemble
from bayeslora.posteriors.mixture import Mixture
from bayeslora.posteriors.state import load_posterior
from tests.helpers.ensembles import datamodule, fitted, trainer


def test_every_member_has_the_posterior_it_has_alone(data: Path, tmp_path: Path) -> None:
    laplace = Laplace(dtype="float64", samples=16, prior_mean="initial")
    ensemble = fitted(tmp_path, data, 2, run={"callbacks": [laplace]})
    before = {name: value.clone() for name, value in ensemble.trainable().items()}
    assert isinstance(laplace.posterior, Mixture)
    for place, component in enumerate(laplace.posterior.components):
        own = ensemble.member_parameters(place)
        assert all(torch.equal(value, own[name].cpu()) for name, value in component.mean().items())
    assert [len(laplace.report["members"]), laplace.label] == [2, "MultiLaplace"]

    single = Laplace(dtype="float64", prior_mean="initial", directory="memory")
    alone = fitted(tmp_path / "alone", data, [1], LoRAEnsemble, run={"callbacks": [single]})
    for name, value in alone.trainable().items():  # the second member's weights, to the bit
        value.data.copy_(before[name][1:2])
    alone.double()
    single.fit_to(alone.trainer, alone)
    one, other = laplace.posterior.components[1], single.posterior.components[0]
    torch.testing.assert_close(one.curvature, other.curvature, atol=1e-10, rtol=1e-5)  # norms are float32

    made = trainer(tmp_path, callbacks=[laplace])
    made.test(ensemble, datamodule=datamodule(data), verbose=False)
    assert all(torch.equal(value, before[name]) for name, value in ensemble.trainable().items())
    saved = load_posterior(tmp_path / "posterior")
    assert [component.family for component in saved.components] == ["laplace_full"] * 2
    batch = next(iter(ensemble.trainer.datamodule.val_dataloader()))
    predictive = laplace._predictor(ensemble, laplace.posterior)(batch)
    assert predictive.log_probs.shape[:2] == (2 * 16, len(batch))
