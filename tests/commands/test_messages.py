"""What a user did is answered in one line that says what was given, what is allowed, and what to do."""

import shutil
from pathlib import Path

import pytest
import yaml

from bayeslora.cli import main
from bayeslora.errors import UsageError
from tests.helpers.command_line import arguments, refused


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (b"", "empty"),
        (b"seed_everything: 1\nseed_everything: 2\n", "the key 'seed_everything' is there twice"),
        ("seed_everything: 1\n".encode("utf-16"), "not in UTF-8"),
        (b"model: [\n", "no valid YAML"),
    ],
)
def test_a_configuration_that_is_none(content: bytes, part: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "c.yaml").write_bytes(content)
    refused(capsys, ["fit", "-c", str(tmp_path / "c.yaml")], part)


@pytest.mark.parametrize(
    ("option", "part"),
    [
        ("--trainer.precision=fp16", "trainer.precision is fp16; allowed: 64, 32, 16,"),
        ("--seed_everything=-1", "seed_everything is '-1'; allowed: a whole number from 0 to 4294967295, or true"),
        ("--trainer.max_epochs=1.5", "trainer.max_epochs is 1.5; allowed: a whole number, null"),
        ("--trainer.enable_checkpointing=false", "--trainer.fast_dev_run"),
        ("--model.lora.alpha=0", "lora.alpha is 0.0; allowed: above 0"),
        ("--model.lora.target_modules=[q_proj,vproj]", "'vproj'; allowed: down_proj, gate_proj"),
    ],
)
def test_an_option_that_is_not_allowed(
    option: str, part: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    refused(capsys, arguments("fit", tmp_path / "run", data, option), part)
    assert not (tmp_path / "run" / "checkpoints").exists()


@pytest.mark.parametrize(
    ("option", "name", "part"),
    [
        ("model", "GaussianModule", "class GaussianModule leaves methods for its subclasses to define; allowed: BLoB"),
        ("model", "Nonsense", "there is no class Nonsense; allowed: BLoBModule, CLoRAModule"),
        ("model", "nowhere.own.Module", "there is no class nowhere.own.Module; allowed: BLoBModule"),
        ("data", "bayeslora.datamodules.Nonsense", "there is no class bayeslora.datamodules.Nonsense; allowed: ARC"),
        ("data", "json.JSONDecoder", "json.JSONDecoder is no LightningDataModule; allowed: ARCDataModule"),
        ("trainer.callbacks", "Nonsense", "there is no class Nonsense; allowed: SWAG, TFB"),
        ("trainer.logger", "Nonsense", "there is no class Nonsense; allowed: the import path of your own"),
    ],
)
@pytest.mark.parametrize("place", ["option", "file"])
def test_a_class_that_cannot_be_had(
    place: str, option: str, name: str, part: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    value: object = [{"class_path": name}] if option.endswith("s") else {"class_path": name}
    for key in reversed(option.split(".")):
        value = {key: value}
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(value))
    given = [f"--{option}={name}"] if place == "option" else ["-c", str(tmp_path / "c.yaml")]
    refused(capsys, ["fit", "-c", "quickstart", *given], part)


def test_bases_that_others_complete_are_not_offered(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit):
        main(["fit", "--help"])
    text = "".join(capsys.readouterr().out.split())
    assert "bayeslora.BLoBModule" in text
    assert not [name for name in ("GaussianModule", "VariationalModule", "PosteriorCallback") if name in text]


def test_a_run_without_a_length(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    endless = ["--trainer.max_epochs=-1", "--trainer.max_time=00:00:00:02"]
    refused(capsys, arguments("fit", tmp_path / "run", data, *endless), "max_steps", "max_time may end it earlier")


def test_nothing_is_asked_for(capsys: pytest.CaptureFixture) -> None:
    refused(capsys, ["fit"], "give -c CONFIG")


@pytest.mark.parametrize("place", ["option", "file"])
def test_any_seed_will_do(place: str, data: Path, tmp_path: Path) -> None:
    (tmp_path / "seed.yaml").write_text("seed_everything: true\n")
    option = ["--seed_everything=true"] if place == "option" else ["-c", str(tmp_path / "seed.yaml")]
    assert main(arguments("fit", tmp_path / "run", data, *option)) == 0
    saved = yaml.safe_load((tmp_path / "run" / "fit-config.yaml").read_text())
    assert type(saved["seed_everything"]) is int


def test_a_run_that_is_at_its_end_says_so(finished: Path, data: Path) -> None:
    with pytest.warns(
        UserWarning, match=r"nothing was left to train: .* raise max_epochs or max_steps \(--trainer.max_epochs\)"
    ) as said:
        assert main(arguments("fit", finished, data, "--ckpt_path=last")) == 0
    assert not any("is not empty" in str(warning.message) for warning in said)


def test_adapters_that_are_none(finished: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    def refuse(option: str, *parts: str) -> None:
        refused(capsys, arguments("fit", tmp_path / "run", data, option), *parts)

    adapter = finished / "posterior"
    refuse(f"--model.backbone.pretrained={adapter}", "is a peft adapter", f"--model.backbone.adapter {adapter}")
    shutil.copytree(adapter, tmp_path / "named" / "default")
    refuse(f"--model.backbone.adapter={tmp_path / 'named'}", f"{tmp_path / 'named' / 'default'} has one")
    weights = tmp_path / "named" / "default" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:500])
    refuse(f"--model.backbone.adapter={weights.parent}", "is damaged")
    weights.unlink()
    refuse(f"--model.backbone.adapter={weights.parent}", "has no adapter_model.safetensors")


def test_a_mixture_of_experts_is_told_which_layers_to_name(tmp_path: Path) -> None:
    from transformers import MixtralConfig, MixtralForCausalLM

    from bayeslora import Backbone, LoRA
    from bayeslora.models.loading import load_answer_model

    sizes = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "num_local_experts": 2}
    MixtralForCausalLM(MixtralConfig(**sizes, **heads)).save_pretrained(tmp_path)
    with pytest.raises(UsageError, match=r"target_modules \[q_proj, v_proj\]"):
        load_answer_model(Backbone(pretrained=str(tmp_path)), LoRA(r=2), 0)
    load_answer_model(Backbone(pretrained=str(tmp_path)), LoRA(r=2, target_modules=["q_proj", "v_proj"]), 0)
