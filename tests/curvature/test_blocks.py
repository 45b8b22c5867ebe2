"""Kronecker and diagonal fits: the choice of the prior, by groups and sites, again and again without the model."""

from typing import Any

import pytest
import torch

from bayeslora.curvature.fit import STRUCTURES
from bayeslora.curvature.jacobian import contrast_jacobian
from bayeslora.curvature.structures import BLOCK_STRUCTURES as BLOCKS
from bayeslora.posteriors.laplace.fit import Fit, Prior
from bayeslora.posteriors.state import load_posterior, save_posterior
from tests.helpers.laplace_tasks import TARGETS, batches, task
from tests.helpers.models import exact

SOME = pytest.mark.parametrize("structure", ["kfac", "ekfac", "diag"])


@pytest.fixture(scope="module")
def model(llama: str) -> Any:
    return exact(llama, TARGETS)


def fitted(structure: str, model: Any) -> Fit:
    return STRUCTURES[structure](task(model, batches(), batches()))


@pytest.mark.parametrize("structure", BLOCKS)
def test_the_evidences_optimum_balances_weights_and_data(structure: str, model: Any) -> None:
    _, choice, report = fitted(structure, model).choose(Prior("evidence"))
    (precision,) = choice.precisions.tolist()
    assert precision * report["squared_distance"]["all"] == pytest.approx(report["gamma"]["all"], rel=1e-6)


@SOME
def test_every_group_has_an_optimum_of_its_own(structure: str, model: Any) -> None:
    one, many = (fitted(structure, model).choose(Prior("evidence", groups=groups)) for groups in ("one", "factor"))
    for group, precision in many[2]["precision"].items():
        assert precision * many[2]["squared_distance"][group] == pytest.approx(many[2]["gamma"][group], rel=1e-6)
    assert many[2]["log_evidence"] > one[2]["log_evidence"]
    assert {"A", "B"} <= many[2]["precision"].keys()
    names = {"A": "lora_A", "B": "lora_B"}
    for name, value in many[0].precision.items():
        (group,) = [group for group, part in names.items() if part in name]
        assert value == pytest.approx(many[2]["precision"][group])


@SOME
def test_the_prior_is_chosen_again_without_the_model(structure: str, model: Any) -> None:
    fit = fitted(structure, model)
    handle = model.register_forward_hook(lambda *_: pytest.fail("the model ran"))
    try:
        chosen = {p: fit.choose(Prior(p))[1].precisions.item() for p in ("evidence", "validation", 3.0)}
        scaled = fit.choose(Prior(3.0, scale=2.0))[0]
        plain = fit.choose(Prior(3.0))[0]
    finally:
        handle.remove()
    assert chosen[3.0] == pytest.approx(3.0)
    assert chosen["evidence"] != pytest.approx(chosen["validation"])
    _, jacobian = contrast_jacobian(model, batches()[0], dtype=torch.float64)
    expected = 2 * plain.logit_covariance(jacobian)
    torch.testing.assert_close(scaled.logit_covariance(jacobian), expected, atol=1e-10, rtol=1e-8)


@SOME
def test_some_sites_are_uncertain_and_the_others_known(structure: str, model: Any, tmp_path: Any) -> None:
    posterior, _, _ = fitted(structure, model).choose(Prior(2.0, subset_of_weights="last"))
    assert posterior.mean().keys() == model.trainable().keys()
    assert all("lm_head" in name for name in posterior.blocks)
    save_posterior(posterior, tmp_path / "posterior")
    _, jacobian = contrast_jacobian(model, batches()[0], dtype=torch.float64)
    found = load_posterior(tmp_path / "posterior").logit_covariance(jacobian)
    assert torch.equal(found, posterior.logit_covariance(jacobian))
    assert found.diagonal(dim1=1, dim2=2).max() > 0
