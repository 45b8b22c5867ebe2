"""A run that is pushed to the hub answers from there as it did, and takes nothing of this machine with it."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import yaml

from bayeslora import (
    SWAG,
    Decision,
    JSONLDataModule,
    LoRAEnsemble,
    LoRAModule,
    Predictions,
    Predictor,
    Report,
    Temperature,
    UsageError,
)
from bayeslora.cli import main
from bayeslora.lightning_modules.multiple_choice import MultipleChoiceModule
from bayeslora.models.loading import Backbone, LoRA
from bayeslora.posteriors.state import save_posterior
from bayeslora.results import plots
from bayeslora.serving.hub import write
from bayeslora.serving.keep import KeepForServing
from tests.helpers.command_line import refused

COMMIT = "d" * 40
SMALL = LoRA(r=2, target_modules=["q_proj", "v_proj"])
LINES = [{"id": str(i), "question": f"Is {i} even?", "options": ["yes", "no"], "label": i % 2} for i in range(40)]


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A hub that copies into this machine's cache what is uploaded; what was asked of it."""
    asked: dict[str, Any] = {}
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))

    def create_repo(self: Any, repo_id: str, **options: Any) -> None:
        asked["create"] = {"repo": repo_id, **options}

    def upload_folder(self: Any, *, repo_id: str, folder_path: str, **options: Any) -> str:
        asked["upload"] = options
        place = tmp_path / "cache" / f"models--{repo_id.replace('/', '--')}"
        (place / "refs").mkdir(parents=True)
        (place / "refs" / "main").write_text(COMMIT)
        asked["folder"] = shutil.copytree(folder_path, place / "snapshots" / COMMIT)
        return f"https://hub/{repo_id}/commit/{COMMIT}"

    monkeypatch.setattr("huggingface_hub.HfApi.create_repo", create_repo)
    monkeypatch.setattr("huggingface_hub.HfApi.upload_folder", upload_folder)
    return asked


def run(root: Path, make: Callable[..., MultipleChoiceModule], callbacks: list[L.Callback], **backbone: Any) -> Path:
    """A run of two steps on a file of one's own, tested there and on a second file."""
    data = root / "data"
    data.mkdir()
    (data / "train.jsonl").write_text("\n".join(map(json.dumps, LINES)))
    (data / "test.jsonl").write_text("\n".join(map(json.dumps, LINES[:12])))
    (root / "secret_others.jsonl").write_text("\n".join(map(json.dumps, LINES[:10])))
    trainer = L.Trainer(
        max_steps=2, accelerator="cpu", default_root_dir=root / "run", logger=False, enable_checkpointing=False,
        callbacks=[*callbacks, Predictions(), Report(), KeepForServing()], enable_progress_bar=False,
        num_sanity_val_steps=0, limit_val_batches=0,
    )  # fmt: skip
    others = f"jsonl:{root / 'secret_others.jsonl'}"
    datamodule = JSONLDataModule(str(data), labels=40, calibration=8, batch_size=8, ood=[others])
    module = make(backbone=Backbone(**backbone), lora=SMALL)
    trainer.fit(module, datamodule=datamodule)
    trainer.test(module, datamodule=datamodule, verbose=False)
    return root / "run"


def texts(folder: Path) -> dict[str, str]:
    return {f.name: f.read_text() for f in folder.rglob("*") if f.suffix in (".json", ".md")}


@pytest.mark.parametrize("kind", ["swag", "ensemble"])
def test_a_run_comes_back_from_the_hub(
    kind: str, hub: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[str] = []
    draw = plots.reliability
    swag = [SWAG(start=0, unit="step", samples=3), Temperature(), Decision()]
    made = {
        "swag": lambda: run(tmp_path, LoRAModule, swag),
        "ensemble": lambda: run(tmp_path, lambda **own: LoRAEnsemble(members=2, **own), []),
    }
    predictor = Predictor.from_run(made[kind](), device="cpu")
    monkeypatch.setattr(plots, "reliability", lambda datasets: drawn.extend(datasets) or draw(datasets))
    address = predictor.push_to_hub("someone/intents", license="apache-2.0")
    assert address.endswith(COMMIT)
    assert hub["create"] == {"repo": "someone/intents", "private": True, "exist_ok": True}
    for name in ("data", "run", "secret_others.jsonl"):  # nothing of this machine is needed
        place = tmp_path / name
        shutil.rmtree(place) if place.is_dir() else place.unlink()
    again = Predictor.from_hub("someone/intents", revision=COMMIT, device="cpu")
    asked = [f"Is {i} even?" for i in range(50, 55)]
    assert [answer.to_dict() for answer in again(asked)] == [answer.to_dict() for answer in predictor(asked)]

    files = texts(hub["folder"])
    assert not [name for name, text in files.items() if str(tmp_path) in text]
    _, head, body = files["README.md"].split("---\n", 2)
    metadata = yaml.safe_load(head)
    assert metadata["license"] == "apache-2.0"
    assert "base_model" not in metadata  # which is in the package, not on the hub
    found = metadata["model-index"][0]["results"]
    assert {result["dataset"]["name"] for result in found} == {"jsonl:data", "jsonl:secret_others.jsonl"}
    numbers = json.loads(files["metrics.json"])["datasets"]["jsonl:data"]
    assert f"| accuracy | {numbers['accuracy']:.4f}" in body
    assert 'Predictor.from_hub("someone/intents")' in body
    assert "![Calibration" in body
    assert (hub["folder"] / "reliability.png").is_file()
    assert drawn == ["jsonl:data", "jsonl:secret_others.jsonl"]
    assert ("error at most" in body) == (kind == "swag")
    assert (hub["folder"] / "adapter_model.safetensors").is_file() == (kind == "swag")


def test_the_plain_adapter_is_the_mean(hub: dict[str, Any], tmp_path: Path) -> None:
    predictor = Predictor.from_run(run(tmp_path, LoRAModule, []), device="cpu")
    predictor.push_to_hub("someone/plain")
    plain = Predictor.from_adapter("embedded", "someone/plain", options=["yes", "no"], max_length=1024, device="cpu")
    asked = ["Is 51 even?", "Is 52 even?"]
    for answer, mean in zip(predictor(asked), plain(asked), strict=True):
        assert mean.probs == pytest.approx(answer.probs, abs=1e-6)


def test_a_run_keeps_the_adapter_it_started_from(hub: dict[str, Any], tmp_path: Path) -> None:
    start = LoRAModule(lora=LoRA(r=3, alpha=5.0, target_modules=["q_proj"]))
    start.configure_model()
    save_posterior(start.posterior(), tmp_path / "theirs", start.model.adapter_config, start.model.base_fingerprint)
    root = run(tmp_path, LoRAModule, [], adapter=str(tmp_path / "theirs"))
    before = Predictor.from_run(root, device="cpu")("Is 51 even?")
    shutil.rmtree(tmp_path / "theirs")
    predictor = Predictor.from_run(root, device="cpu")
    assert predictor("Is 51 even?") == before
    predictor.push_to_hub("someone/further")
    shutil.rmtree(root)
    assert Predictor.from_hub("someone/further", device="cpu")("Is 51 even?") == before
    assert not [name for name, text in texts(hub["folder"]).items() if str(tmp_path) in text]


def test_an_adapter_from_elsewhere_can_be_pushed_too(hub: dict[str, Any], tmp_path: Path) -> None:
    module = LoRAModule(lora=SMALL)
    module.configure_model()
    with torch.no_grad():
        for parameter in module.trainable().values():
            parameter.add_(0.05)
    save_posterior(module.posterior(), tmp_path / "theirs", module.model.adapter_config)
    predictor = Predictor.from_adapter("embedded", tmp_path / "theirs", options=["yes", "no"], device="cpu")
    predictor.push_to_hub("someone/theirs")
    again = Predictor.from_hub("someone/theirs", device="cpu")
    assert again("Is 51 even?") == predictor("Is 51 even?")
    assert "What its test measured" not in texts(hub["folder"])["README.md"]


def test_what_others_could_not_use_is_refused(hub: dict[str, Any], tmp_path: Path) -> None:
    predictor = Predictor.from_run(run(tmp_path, LoRAModule, []), device="cpu")
    here = {**predictor.kept.arguments, "backbone": {**predictor.kept.arguments["backbone"], "pretrained": "/a/base"}}
    wrong = {
        "the base /a/base is a folder": replace(predictor.kept, arguments=here),
        "the tokenizer /a/tok is a folder": replace(
            predictor.kept, prompting=replace(predictor.kept.prompting, tokenizer="/a/tok")
        ),
        r"arguments\.log names /a/log": replace(
            predictor.kept, arguments={**predictor.kept.arguments, "log": "/a/log"}
        ),
    }
    for place, (message, kept) in enumerate(wrong.items()):
        with pytest.raises(UsageError, match=message):
            write(kept, predictor.module, None, "someone/x", tmp_path / str(place), None, None)
    named = wrong["the base /a/base is a folder"]
    named = replace(named, prompting=replace(named.prompting, tokenizer="/a/base"))
    write(named, predictor.module, None, "someone/x", tmp_path / "named", "someone/base", None)
    record = json.loads((tmp_path / "named" / "serving" / "serving.json").read_text())
    assert record["prompting"]["tokenizer"] == record["arguments"]["backbone"]["pretrained"] == "someone/base"
    assert json.loads((tmp_path / "named" / "adapter_config.json").read_text())["base_model_name_or_path"] == (
        "someone/base"
    )
    assert yaml.safe_load((tmp_path / "named" / "README.md").read_text().split("---\n")[1])["base_model"] == (
        "someone/base"
    )


def test_a_refusal_of_the_hub_is_one_line(hub: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    predictor = Predictor.from_run(run(tmp_path, LoRAModule, []), device="cpu")

    def create_repo(self: Any, repo_id: str, **options: Any) -> None:
        raise ConnectionError("no route\nto the hub")

    monkeypatch.setattr("huggingface_hub.HfApi.create_repo", create_repo)
    with pytest.raises(UsageError, match="the hub refuses someone/x: no route to the hub"):
        predictor.push_to_hub("someone/x")
    with pytest.raises(UsageError, match="the run someone/nothing is neither in the local cache"):
        Predictor.from_hub("someone/nothing")


def test_the_command_pushes_a_run(
    hub: dict[str, Any], own: tuple[Path, list[dict]], capsys: pytest.CaptureFixture[str]
) -> None:
    run = ["push", "--run", str(own[0]), "--repo"]
    assert main([*run, "someone/intents", "--license", "mit", "--message", "First", "--branch", "new"]) == 0
    assert capsys.readouterr().out == f"https://hub/someone/intents/commit/{COMMIT}\n"
    assert hub["create"] == {"repo": "someone/intents", "private": True, "exist_ok": True}
    given = {name: hub["upload"][name] for name in ("commit_message", "revision", "create_pr")}
    assert given == {"commit_message": "First", "revision": "new", "create_pr": False}
    assert yaml.safe_load(texts(hub["folder"])["README.md"].split("---\n")[1])["license"] == "mit"
    again = Predictor.from_hub("someone/intents", device="cpu")
    assert again("Is 4 even?") == Predictor.from_run(own[0], "cpu")("Is 4 even?")
    assert main([*run, "someone/open", "--public", "--pull-request"]) == 0
    assert hub["create"]["private"] is False
    assert hub["upload"]["create_pr"] is True


def test_what_cannot_be_pushed_is_said_in_one_line(
    hub: dict[str, Any], own: tuple[Path, list[dict]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for run, repo, message in ((tmp_path, "someone/x", "holds no run"), (own[0], "no owner/a/b", "owner/name")):
        refused(capsys, ["push", "--run", str(run), "--repo", repo], message)
    assert not hub
