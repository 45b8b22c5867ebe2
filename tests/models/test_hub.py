"""Adapters by their id on the hub: from the local cache, without a network."""

import shutil
from pathlib import Path

import pytest
import torch

from bayeslora import BLoBModule, CLoRAModule, LoRAModule, UsageError, save_posterior
from bayeslora.models.hub import adapter_folder, is_hub_id, snapshot
from bayeslora.models.loading import Backbone, LoRA

COMMIT = "c" * 40
SMALL = LoRA(r=2, target_modules=["q_proj", "v_proj"])


def cached(cache: Path, name: str, folder: Path) -> None:
    """A repository as the hub's own client leaves it in its cache."""
    place = cache / f"models--{name.replace('/', '--')}"
    (place / "refs").mkdir(parents=True)
    (place / "refs" / "main").write_text(COMMIT)
    shutil.copytree(folder, place / "snapshots" / COMMIT)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "cache"


@pytest.mark.parametrize("kind", [LoRAModule, BLoBModule, CLoRAModule])
def test_an_adapter_on_the_hub_is_the_same_as_its_folder(kind: type, cache: Path, tmp_path: Path) -> None:
    made = kind(lora=SMALL, seed=3)
    made.configure_model()
    with torch.no_grad():
        for parameter in made.trainable().values():
            parameter.add_(0.1)
    save_posterior(made.posterior(), tmp_path / "run", made.model.adapter_config, made.model.base_fingerprint)
    cached(cache, "someone/theirs", tmp_path / "run")
    wanted = dict(made.trainable())
    for name in ("someone/theirs", "someone/theirs@main", f"someone/theirs@{COMMIT}"):
        found = kind(Backbone(adapter=name), seed=4)
        found.configure_model()
        for key, value in found.trainable().items():
            torch.testing.assert_close(value, wanted[key], msg=key)


def test_a_folder_goes_before_the_hub(cache: Path) -> None:
    folder = Path("someone/theirs")
    folder.mkdir(parents=True)
    assert adapter_folder("someone/theirs") == folder
    assert not is_hub_id("someone/theirs")
    assert is_hub_id("someone/others")
    assert is_hub_id("gpt2")
    assert not is_hub_id("runs/a/posterior")
    assert adapter_folder("runs/a/posterior") == Path("runs/a/posterior")  # whose absence the caller reports


def test_what_is_not_there_is_said_in_one_line(cache: Path) -> None:
    with pytest.raises(UsageError, match=r"is no folder, and the adapter .* neither in the local cache nor") as refused:
        adapter_folder("someone/nothing")
    assert "\n" not in str(refused.value)
    with pytest.raises(UsageError, match="is no id of the hub"):
        snapshot("../../etc", ["*"], "run")


def test_a_pickle_from_the_hub_is_never_read(cache: Path, tmp_path: Path) -> None:
    """A local file of that kind is one's own; anybody's on the hub is not downloaded, and is refused in a cache."""
    made = LoRAModule(lora=SMALL)
    made.configure_model()
    save_posterior(made.posterior(), tmp_path / "run", made.model.adapter_config)
    (tmp_path / "run" / "adapter_model.safetensors").unlink()
    torch.save(dict(made.trainable()), tmp_path / "run" / "adapter_model.bin")
    cached(cache, "someone/theirs", tmp_path / "run")
    with pytest.raises(UsageError, match=r"has no adapter_model\.safetensors"):
        LoRAModule(Backbone(adapter="someone/theirs")).configure_model()
