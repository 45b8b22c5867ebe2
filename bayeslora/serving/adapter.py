"""What answers questions, made of a base, a peft adapter and a posterior that was put over it, without a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from bayeslora.callbacks.laplace_prediction import LaplacePrediction
from bayeslora.callbacks.posterior import WeightPrediction
from bayeslora.datamodules.model_side import HEAD, ModelSide
from bayeslora.datamodules.prompting import Prompting, allowed_length
from bayeslora.datamodules.protocols import get_protocol
from bayeslora.datamodules.tokenizer import load_tokenizer
from bayeslora.errors import UsageError, require
from bayeslora.models.hub import adapter_folder
from bayeslora.models.loading import Backbone
from bayeslora.posteriors.state import base_of, load_posterior
from bayeslora.serving.kept import Kept, Prediction
from bayeslora.types import GaussianPosterior, Posterior

# What the callbacks and modules call themselves that draw from these families: it names the stream of their draws.
_LABELS = {"swag": "SWAG", "tfb": "TFB", "mean_field": "blob", "scalabl": "scalabl", "mixture": "mixture"}
_LAPLACE = "laplace_"


def kept_of_adapter(
    base: str | Backbone,
    adapter: str | Path,
    posterior: str | Path | Posterior | None = None,
    *,
    samples: int = 10,
    seed: int = 0,
    temperature: float = 1.0,
    protocol: Any = "default",
    task: str = "jsonl",
    options: Sequence[str] | None = None,
    chat: bool = False,
    tokenizer: str | None = None,
    max_length: int | None = None,
    batch_size: int = 16,
) -> Kept:
    """All that answers questions, see :meth:`bayeslora.serving.predictor.Predictor.from_adapter`.

    Args:
        base: The base model, by its id on the hub or its folder, or a backbone.
        adapter: The adapter's folder or its id on the hub.
        posterior: What is predicted with in the place of the adapter's weights; None takes those.
        samples: Number S of samples of each component.
        seed: Names the stream of the samples.
        temperature: What logits are divided by.
        protocol: How questions become prompts.
        task: Name of the task for the protocol.
        options: The options of every question; None takes each question's own.
        chat: Whether prompts are put into the tokenizer's chat template.
        tokenizer: Name or folder of the tokenizer; None takes the base's.
        max_length: Most tokens of a prompt; None for the base's limit.
        batch_size: Questions in a pass.

    Raises:
        UsageError: what is given does not belong together, or is not there.
    """
    for name, number in {"samples": samples, "batch_size": batch_size}.items():
        require(name, number, number >= 1, "1 or more")
    require("temperature", temperature, temperature > 0, "above 0")
    backbone = replace(base if isinstance(base, Backbone) else Backbone(base), adapter=str(adapter))
    found, base_of_it = _posterior(posterior)
    prediction = None if found is None else _prediction(found, samples, seed)
    asked = {"task": task, "chat": chat, "max_length": max_length or 0, "options": options and tuple(options)}
    return Kept(
        method="adapter" if prediction is None else prediction.label,
        module="LoRAModule",
        arguments={"backbone": asdict(backbone), "seed": seed},
        weights={},
        base=base_of_it or _base_beside(adapter_folder(str(adapter))),
        prompting=_checked(_prompting(backbone, protocol, tokenizer, **asked), backbone),
        batch_size=batch_size,
        prediction=prediction,
        posterior=found,
        temperature=temperature,
    )


def _base_beside(adapter: Path) -> str:
    """Fingerprint of the base that a posterior beside an adapter names; empty where there is none."""
    return base_of(adapter) if (adapter / "posterior.json").is_file() else ""


def _prompting(backbone: Backbone, protocol: Any, tokenizer: str | None, **given: Any) -> Prompting:
    """How questions are asked of a backbone."""
    return Prompting(
        protocol=get_protocol(protocol).saved(),
        tokenizer=tokenizer or backbone.pretrained,
        revision=None if tokenizer else backbone.revision,
        readout=backbone.readout,
        pairs=backbone.readout == HEAD and backbone.num_labels is not None,
        **given,
    )


def _posterior(given: str | Path | Posterior | None) -> tuple[Posterior | None, str]:
    """A posterior and the fingerprint of its base; none for a point, which is an adapter like any other."""
    if given is None or not isinstance(given, str | Path):
        return given, ""
    folder = adapter_folder(str(given))
    return load_posterior(folder), base_of(folder)


def _prediction(posterior: Posterior, samples: int, seed: int) -> Prediction:
    parts = getattr(posterior, "components", [posterior])
    families = {part.family for part in parts}
    if "contextual" in families:
        raise UsageError(
            "C-LoRA has no law over weights, and its posterior/ does not say what its modules see; give its run to "
            "Predictor.from_run"
        )
    laplace = [family.startswith(_LAPLACE) for family in families]
    if any(laplace) and not all(laplace):
        raise UsageError(f"the mixture has {', '.join(sorted(families))}; allowed: Laplace posteriors alone, or none")
    if all(laplace):
        assert all(isinstance(part, GaussianPosterior) for part in parts)
        return LaplacePrediction("Laplace", "linearised", samples, seed, (1.0,) * len(parts))
    draws = 1 if families == {"point"} else samples
    return WeightPrediction(_LABELS.get(posterior.family, posterior.family), "samples", draws * len(parts), False, seed)


def _checked(prompting: Prompting, backbone: Backbone) -> Prompting:
    """The same with a length, where nobody asked for one.

    Raises:
        UsageError: a task that the protocol does not define, or classes without names.
    """
    protocol = get_protocol(prompting.protocol)
    protocol.check_task(prompting.task)
    if prompting.pairs and len(prompting.options or ()) != backbone.num_labels:
        raise UsageError(f"the head has {backbone.num_labels} classes; give their names as options, in their order")
    if prompting.max_length:
        return prompting
    tokenizer = load_tokenizer(prompting.tokenizer, prompting.revision)
    positions = ModelSide.of_backbone(backbone).limits.positions
    return replace(prompting, max_length=allowed_length(protocol, tokenizer, positions))
