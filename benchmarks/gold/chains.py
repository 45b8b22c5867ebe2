"""The gold of a setting: chains, what they predict, and whether they agree."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from gold import hmc
from gold.convergence import Diagnostics, diagnostics
from gold.distance import Scores, distances, mixed
from gold.network import Network, products
from gold.posterior import Target, trained
from gold.setting import Problem, Setting
from torch import Tensor

from bayeslora.files import write_json
from bayeslora.models.loading import initialise
from bayeslora.streams import generator

CHAINS, WARM_UP, DRAWS, TRAINING_STEPS = 8, 50, 300, 60
ENTRIES = 64  # of the products BA, drawn once
FILE, RECORD = "gold.pt", "gold.json"


def make(setting: Setting, given: Problem, folder: Path, warm_up: int = WARM_UP, draws: int = DRAWS) -> dict[str, Any]:
    """Draw, predict, and write ``gold.pt`` (probabilities ``[K, N, Q, C]`` by test set) and ``gold.json``.

    Args:
        setting: What for.
        given: Its model and questions.
        folder: Where the files go.
        warm_up: Draws before those that are kept.
        draws: Draws of each chain.
    """
    stream = generator(setting.seed, "gold", setting.labels, setting.rank, setting.sampled)
    start = starts(setting, given, stream)
    chains = hmc.sample(given.target, start, draws, warm_up, stream, step_size=0.1)
    with torch.no_grad():
        members = {name: predicted(given.target, one.network, chains.draws) for name, one in given.tests.items()}
        quantities = measured(given.target, chains, members)
    found = {name: diagnostics(values) for name, values in quantities.items()}
    whole = Diagnostics.joined(one for name, one in found.items() if name != "log density").summary
    record = {
        "setting": asdict(setting),
        "prior_std": setting.prior_std,
        "weights": given.target.size,
        "draws": draws,
        "warm_up": warm_up,
        "step_size": chains.step_size,
        "gradients": chains.gradients,
        "acceptance": chains.acceptance.tolist(),
        "converged": whole.converged,
        "convergence": {"all": asdict(whole), **{name: asdict(one.summary) for name, one in found.items()}},
        "tests": {name: floor(one, given.tests[name].true_probs) for name, one in members.items()},
    }
    folder.mkdir(parents=True, exist_ok=True)
    torch.save({name: values.float() for name, values in members.items()}, folder / FILE)
    write_json(folder / RECORD, record)
    return record


def starts(setting: Setting, given: Problem, stream: torch.Generator) -> Tensor:
    """Whitened weights ``[K, P]``: half of them of trained adapters, from initial weights of their own, half prior."""
    half, target = CHAINS // 2, given.target
    found = []
    for member in range(half):
        values = {name: value.clone() for name, value in target.initial.items()}
        initialise(values, setting.seed, "gold", member)
        found.append(target.whiten({name: value[None] for name, value in values.items()}))
    adapters = trained(target, torch.cat(found), TRAINING_STEPS)
    prior = torch.randn(CHAINS - half, target.size, generator=stream, dtype=torch.float64)
    return torch.cat([adapters, prior])


def predicted(target: Target, network: Network, draws: Tensor) -> Tensor:
    """Probabilities ``[K, N, Q, C]`` of the questions of ``network`` under draws ``[K, N, P]``."""
    parts = [network.logits(target.weights(part)).softmax(-1) for part in draws.flatten(0, 1).split(64)]
    return torch.cat(parts).unflatten(0, draws.shape[:2])


def measured(target: Target, chains: hmc.Chains, members: dict[str, Tensor]) -> dict[str, Tensor]:
    """What must agree between chains ``[K, N, .]``: probabilities, log-odds, entries of BA, and the log density."""
    probs = torch.cat(list(members.values()), 2)
    logs = probs.clamp_min(torch.finfo(probs.dtype).tiny).log()
    entries = products(target.weights(chains.draws.flatten(0, 1))).flatten(1)
    picked = torch.randperm(entries.shape[1], generator=generator("entries"))[:ENTRIES]
    return {
        "probabilities": probs.flatten(2),
        "log-odds": (logs[..., 1:] - logs[..., :1]).flatten(2),
        "entries of BA": entries[:, picked].unflatten(0, chains.draws.shape[:2]),
        "log density": chains.log_density[..., None],
    }


def floor(members: Tensor, truth: Tensor) -> Scores:
    """The distance of the half from trained adapters from the half from the prior, and the whole gold's own scores."""
    half = len(members) // 2
    (first, first_mi), (second, second_mi) = (mixed(part.flatten(0, 1)) for part in (members[:half], members[half:]))
    between = distances(first, first_mi, second, second_mi, truth)
    probs, mi = mixed(members.flatten(0, 1))
    own = distances(probs, mi, probs, mi, truth)
    return own | {name: between[name] for name in ("tv", "agreement", "kl", "mi_correlation")}


def load(folder: Path) -> dict[str, tuple[Tensor, Tensor]]:
    """Averaged probabilities and mutual information of the gold by test set."""
    members = torch.load(folder / FILE, weights_only=True)
    return {name: mixed(values.double().flatten(0, 1)) for name, values in members.items()}
