"""Posteriors survive the disk bit for bit, and what does not fit is refused by name."""

import json
import re
from pathlib import Path

import pytest
import torch

from bayeslora.errors import UsageError
from bayeslora.files import read_record
from bayeslora.posteriors.mixture import Mixture
from bayeslora.posteriors.point import Point
from bayeslora.posteriors.state import load_posterior, save_posterior


def point(seed: int, rank: int = 2) -> Point:
    generator = torch.Generator().manual_seed(seed)
    shapes = {"base_model.model.a.lora_A.weight": (rank, 5), "base_model.model.a.lora_B.weight": (4, rank)}
    return Point({name: torch.randn(shape, generator=generator) for name, shape in shapes.items()})


def assert_same(first: dict, second: dict) -> None:
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("config", [None, {"peft_type": "LORA", "target_modules": {"a"}}])
def test_point_round_trip(tmp_path: Path, config: dict | None) -> None:
    save_posterior(point(0), tmp_path / "posterior", config, base="abc")
    back = load_posterior(tmp_path / "posterior", base="abc")
    assert isinstance(back, Point)
    assert_same(back.mean(), point(0).mean())
    assert (tmp_path / "posterior" / "adapter_model.safetensors").exists() == (config is not None)


def test_mixture_round_trip_and_sampling(tmp_path: Path) -> None:
    mixture = Mixture([point(0), point(1), point(2)])
    save_posterior(mixture, tmp_path / "posterior", {"peft_type": "LORA"})
    back = load_posterior(tmp_path / "posterior")
    assert sorted(p.name for p in (tmp_path / "posterior").iterdir() if p.is_dir()) == ["000", "001", "002"]
    draws = back.sample(6, torch.Generator())
    for name, value in draws.items():
        assert value.shape[0] == 6
        assert torch.equal(value[2], point(1).mean()[name])
        torch.testing.assert_close(value[::2].mean(0), mixture.mean()[name])
    nested = Mixture([mixture, mixture])
    save_posterior(nested, tmp_path / "nested")
    assert_same(load_posterior(tmp_path / "nested").mean(), nested.mean())


def test_saving_again_replaces_and_a_failed_save_keeps_what_was_there(tmp_path: Path) -> None:
    folder = tmp_path / "posterior"
    save_posterior(point(0), folder)

    class Broken(Point):
        def state_dict(self) -> dict:
            raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        save_posterior(Broken(point(1).mean()), folder)
    assert_same(load_posterior(folder).mean(), point(0).mean())
    save_posterior(point(1), folder)
    assert_same(load_posterior(folder).mean(), point(1).mean())
    assert [p.name for p in tmp_path.iterdir()] == ["posterior"]


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="holds no posterior"):
        load_posterior(tmp_path)
    folder = tmp_path / "posterior"
    save_posterior(point(0), folder, base="abc")
    with pytest.raises(UsageError, match="another base"):
        load_posterior(folder, base="def")
    record = read_record(folder / "posterior.json", "")  # without its checksum
    for unknown in ("wizardry", "state", "laplace.full", "os", "../point"):
        (folder / "posterior.json").write_text(json.dumps({**record, "family": unknown}))
        with pytest.raises(UsageError, match=f"family {re.escape(unknown)}; this version reads"):
            load_posterior(folder)
    (folder / "posterior.json").write_text("{")
    with pytest.raises(UsageError, match="damaged"):
        load_posterior(folder)
    (folder / "posterior.json").write_text(json.dumps(record))
    (folder / "posterior.safetensors").write_bytes(b"short")
    with pytest.raises(UsageError, match="damaged"):
        load_posterior(folder)
    with pytest.raises(UsageError, match="shape"):
        Mixture([point(0), point(0, rank=3)])
    with pytest.raises(UsageError, match="no components"):
        Mixture([])
