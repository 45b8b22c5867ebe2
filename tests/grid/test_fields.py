"""Every field of a configuration has a verdict, and a fingerprint follows it."""

import copy
import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import Trainer

import bayeslora.callbacks
import bayeslora.datamodules
import bayeslora.lightning_modules
from bayeslora.commands.resolved import resolve
from bayeslora.errors import UsageError
from bayeslora.grid.fields import counting_fields, verdict
from bayeslora.grid.fingerprint import document, fingerprint
from bayeslora.grid.specification import Part
from bayeslora.lightning_modules.multiple_choice import MultipleChoiceModule
from bayeslora.lightning_modules.optimisation import Optimisation
from bayeslora.models.loading import Backbone, LoRA
from tools.layout import ROOT


def _arguments(kind: type) -> Iterator[str]:
    """Arguments of a class of this package and of what it passes its others on to."""
    for base in kind.mro():
        if base.__module__.startswith("bayeslora") and "__init__" in vars(base):
            parameters = list(inspect.signature(base.__init__).parameters.values())[1:]
            yield from (p.name for p in parameters if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL))


def every_field() -> set[str]:
    """Every field that a configuration of this package's classes can have."""
    found = {f"trainer.{name}" for name in inspect.signature(Trainer.__init__).parameters if name != "self"}
    for name in bayeslora.lightning_modules.__all__:
        kind = getattr(bayeslora.lightning_modules, name)
        if issubclass(kind, MultipleChoiceModule):
            found |= {f"model.{argument}" for argument in _arguments(kind)}
    for name in bayeslora.datamodules.__all__:
        if name.endswith("DataModule"):
            found |= {f"data.{argument}" for argument in _arguments(getattr(bayeslora.datamodules, name))}
    for name in bayeslora.callbacks.__all__:
        found |= {f"{name}.{argument}" for argument in _arguments(getattr(bayeslora.callbacks, name))}
    for room, kind in (("backbone", Backbone), ("lora", LoRA), ("optimisation", Optimisation)):
        found |= {f"model.{room}.{argument}" for argument in inspect.signature(kind).parameters}
    return found - {"model.backbone", "model.lora", "model.optimisation", "data.benchmark"}


def test_every_field_has_a_verdict() -> None:
    missing = sorted(field for field in every_field() if verdict(field) is None)
    assert not missing, f"say in bayeslora/grid/fields.py whether results differ by {', '.join(missing)}"


@pytest.fixture(scope="module")
def config() -> dict[str, Any]:
    """A resolved configuration."""
    files = ("base/embedded", "data/synthetic", "method/mle", "method/laplace")
    return resolve([Part(name, (ROOT / "bayeslora" / "configs" / f"{name}.yaml",)) for name in files])[0]


def test_every_resolved_field_has_a_verdict(config: dict[str, Any]) -> None:
    missing = [name for name, _ in _leaves(config) if verdict(_field(name)) is None]
    assert not missing


def _leaves(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    for key, inner in value.items():
        if isinstance(inner, dict) and inner:
            yield from _leaves(inner, (*path, key))
        else:
            yield (*path, key), inner


def _field(path: tuple[str, ...]) -> str:
    return ".".join(key for key in path if key != "init_args")


def _key(config: dict[str, Any]) -> str:
    return fingerprint(document(config, {}, 0, 1, None, "last"))


def test_each_field_flipped_in_turn(config: dict[str, Any]) -> None:
    before = _key(config)
    for path, _ in _leaves(config):
        changed = copy.deepcopy(config)
        inner = changed
        for key in path[:-1]:
            inner = inner[key]
        inner[path[-1]] = [] if path[-1] == "callbacks" else "another value"
        field = _field(path)
        if verdict(field) == "refused":
            with pytest.raises(UsageError, match=f"{field} is 'another value'; allowed"):
                _key(changed)
        else:
            assert (_key(changed) != before) == (verdict(field) == "in"), field


def test_a_field_that_nobody_has_judged_counts(config: dict[str, Any]) -> None:
    changed = copy.deepcopy(config)
    changed["model"]["init_args"]["brand_new"] = 1
    assert _key(changed) != _key(config)


def test_order_and_ways_of_writing_do_not_matter(config: dict[str, Any]) -> None:
    other = dict(reversed(copy.deepcopy(config).items()))
    other["model"]["init_args"]["lora"]["alpha"] = 16
    other["model"]["class_path"] = "bayeslora.lightning_modules.lora.LoRAModule"
    other["trainer"]["callbacks"].append({"class_path": "lightning.pytorch.callbacks.LearningRateMonitor"})
    other["trainer"]["callbacks"][0]["init_args"]["directory"] = str(Path("elsewhere"))
    assert _key(other) == _key(config)


def test_callbacks_count_with_their_options_and_their_order(config: dict[str, Any]) -> None:
    other = copy.deepcopy(config)
    other["trainer"]["callbacks"][0]["init_args"]["structure"] = "ekfac"
    assert _key(other) != _key(config)
    other = copy.deepcopy(config)
    other["trainer"]["callbacks"].append({"class_path": "bayeslora.callbacks.Temperature", "init_args": {}})
    turned = copy.deepcopy(other)
    turned["trainer"]["callbacks"].reverse()
    assert len({_key(config), _key(other), _key(turned)}) == 3


def test_seed_threads_training_and_what_is_read_count(config: dict[str, Any]) -> None:
    given = [
        ({}, 0, 1, None, "last"),
        ({"base": "x"}, 0, 1, None, "last"),
        ({}, 1, 1, None, "last"),
        ({}, 0, 2, None, "last"),
        ({}, 0, 1, "training", "last"),
        ({}, 0, 1, None, "best"),
    ]
    assert len({fingerprint(document(config, *arguments)) for arguments in given}) == len(given)
    assert counting_fields(config)["trainer.callbacks"][0][0] == "bayeslora.Laplace"
