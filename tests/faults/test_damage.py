"""Files that results depend on are never read with a damage in silence: flipped bytes, cut ends, appended rubbish.

The long form, through the commands, is ``python -m tests.faults.corrupt``; docs/reliability.md has its figures.
"""

import json
import random
import shutil
from pathlib import Path

import pytest
import torch

from bayeslora import load_posterior, save_posterior
from bayeslora.commands.checkpoints import load
from bayeslora.commands.saved_config import read_sealed, seal
from bayeslora.errors import UsageError
from bayeslora.files import read_record, run_record, write_record
from bayeslora.metrics.answers import Answers
from bayeslora.posteriors.mixture import Mixture
from bayeslora.posteriors.point import Point
from bayeslora.posteriors.state import check_files
from bayeslora.posteriors.swag import Layout, Moments
from bayeslora.results.prediction_file import PredictionFile, read_predictions, write_predictions
from tests.faults.corrupt import MUTATIONS

SAVED = Path(__file__).parents[1] / "assets" / "run_0.1.0"
WEIGHTS = {f"layer{i}.weight": torch.randn(8, 6, generator=torch.Generator().manual_seed(i)) for i in range(3)}


def _posterior(folder: Path) -> Path:
    moments = Moments(Layout.of(WEIGHTS), rank=2)
    for step in range(3):
        moments.update({name: value + step for name, value in WEIGHTS.items()})
    save_posterior(moments.posterior("full", 0.5, "kmax"), folder, {"peft_type": "LORA", "r": 6})
    return folder


@pytest.mark.parametrize(
    "name", ["adapter_model.safetensors", "adapter_config.json", "posterior.safetensors", "posterior.json"]
)
def test_a_damaged_posterior_is_refused(name: str, tmp_path: Path) -> None:
    whole = _posterior(tmp_path / "whole")
    expected = load_posterior(whole).state_dict()
    for seed, mutation in enumerate(MUTATIONS):
        place = Path(shutil.copytree(whole, tmp_path / f"{name}-{seed}"))
        (place / name).write_bytes(mutation((place / name).read_bytes(), random.Random(seed)))
        try:
            found = load_posterior(place).state_dict()
        except UsageError:
            continue
        assert name.endswith(".json"), f"{mutation.__name__} {seed} was accepted"  # white space in JSON may differ
        for key, value in expected.items():
            assert torch.equal(found[key], value) if isinstance(value, torch.Tensor) else found[key] == value


def test_a_damaged_checkpoint_is_refused(tmp_path: Path) -> None:
    whole = (SAVED / "checkpoints" / "last.ckpt").read_bytes()
    expected = load(SAVED / "checkpoints" / "last.ckpt")["state_dict"]
    refused = 0
    for seed, mutation in enumerate(MUTATIONS * 2):
        file = tmp_path / f"{seed}.ckpt"
        file.write_bytes(mutation(whole, random.Random(seed)))
        try:
            found = load(file)["state_dict"]
        except UsageError:
            refused += 1
            continue
        assert all(torch.equal(found[name], value) for name, value in expected.items())  # a byte of padding, say
    assert refused >= len(MUTATIONS)


def test_a_digit_of_a_record_is_noticed(tmp_path: Path) -> None:
    file = tmp_path / "temperature.json"
    write_record(file, {"temperature": 1.234, "n": 24})
    assert read_record(file, "fit again") == {"temperature": 1.234, "n": 24}
    file.write_text(file.read_text().replace("1.234", "1.334"))
    with pytest.raises(UsageError, match=r"temperature.json is damaged .* fit again"):
        read_record(file, "fit again")


@pytest.mark.parametrize("text", [b"\xff\xfe\x00", b"[1]", b"", b"{"])
def test_a_record_that_is_none_is_refused(text: bytes, tmp_path: Path) -> None:
    file = tmp_path / "posterior.json"
    file.write_bytes(text)
    with pytest.raises(UsageError, match="is damaged"):
        read_record(file, "")
    with pytest.raises(UsageError, match="is damaged"):
        load_posterior(tmp_path)


@pytest.mark.parametrize("name", ["../outside", ".", "/etc", "000/../../outside"])
def test_components_stay_inside_their_folder(name: str, tmp_path: Path) -> None:
    save_posterior(Point(WEIGHTS), tmp_path / "outside")
    save_posterior(Mixture([Point(WEIGHTS)] * 2), tmp_path / "mixture")
    file = tmp_path / "mixture" / "posterior.json"
    record = read_record(file, "")
    record["components"] = [name]
    file.write_text(json.dumps(record))  # without a checksum, as a file of before
    with pytest.raises(UsageError, match="none of its own folders"):
        load_posterior(tmp_path / "mixture")


def test_damaged_predictions_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "predictions.parquet"
    members = torch.rand(30, 3, 4, generator=torch.Generator().manual_seed(0)).double().softmax(-1)
    label, names = torch.arange(30) % 4, [str(number) for number in range(30)]
    answers = Answers(
        probs=members.mean(1), label=label, options=torch.full((30,), 4), example_id=names, members=members
    )
    write_predictions(PredictionFile({"own": answers}, "SWAG", 3), file)
    whole = file.read_bytes()
    assert torch.equal(read_predictions(file).datasets["own"].probs, answers.probs)
    for seed in range(60):
        file.write_bytes(MUTATIONS[seed % len(MUTATIONS)](whole, random.Random(seed)))
        try:
            found = read_predictions(file)
        except UsageError as error:
            assert file.name in str(error)  # noqa: PT017
            continue
        assert (found.method, found.seed, list(found.datasets)) == ("SWAG", 3, ["own"])
        assert torch.equal(found.datasets["own"].members, members)
        assert torch.equal(found.datasets["own"].label, label)


def test_a_changed_configuration_of_a_run_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "fit-config.yaml"
    text = b"model: {class_path: LoRAModule, init_args: {lora: {r: 8, alpha: 16}}}\n"
    seal(file, text)
    whole = file.read_bytes()
    expected = read_sealed(file)
    assert expected["model"]["init_args"]["lora"] == {"r": 8, "alpha": 16}
    for seed in range(40):
        file.write_bytes(MUTATIONS[seed % len(MUTATIONS)](whole, random.Random(seed)))
        try:
            assert read_sealed(file) == expected
        except UsageError as error:
            assert file.name in str(error)  # noqa: PT017
    file.write_bytes(text)  # of an earlier version
    assert read_sealed(file) == expected


def test_a_digit_of_a_runs_record_is_noticed(tmp_path: Path) -> None:
    assert run_record(tmp_path) == {}
    write_record(tmp_path / "run.json", {"train_seconds": 12.5})
    assert run_record(tmp_path) == {"train_seconds": 12.5}
    (tmp_path / "run.json").write_text((tmp_path / "run.json").read_text().replace("12.5", "17.5"))
    with pytest.raises(UsageError, match=r"run.json is damaged"):
        run_record(tmp_path)


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "adapter_config.json"])
def test_a_damaged_adapter_of_a_run_is_not_taken(name: str, tmp_path: Path) -> None:
    folder = _posterior(tmp_path / "posterior")
    check_files(folder)
    check_files(tmp_path)  # somebody else's adapter has no checksums
    (folder / name).write_bytes(MUTATIONS[0]((folder / name).read_bytes(), random.Random(1)))
    with pytest.raises(UsageError, match=name):
        check_files(folder)
    from bayeslora.models.loading import _check_adapter_folder

    with pytest.raises(UsageError, match=name):
        _check_adapter_folder(folder)
